"""How each kind of operation under each rule becomes cached coefficients and backward steps."""
