"""Running a plan: forward passes, records, ways down and up."""
