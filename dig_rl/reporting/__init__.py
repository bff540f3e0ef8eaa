"""Reports for people, made from what a run folder holds."""
