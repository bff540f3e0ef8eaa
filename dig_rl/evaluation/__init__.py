"""Measures of a policy on held-out pairs."""
