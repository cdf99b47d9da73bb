"""Whole jobs: defaults, validation, steps, results."""
