"""Differential grounding: reinforcement learning that teaches a vision-language model to box what changed."""
