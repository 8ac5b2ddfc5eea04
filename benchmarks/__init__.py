"""Figures, not tests: every number in the README comes from a command here, with its raw results."""
