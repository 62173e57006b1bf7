"""Graph and rules to steps: what a plan consists of."""
