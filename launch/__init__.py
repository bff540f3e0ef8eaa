"""Entry points: each file is one command, run as `python -m launch.<name>` from the repository's root."""
