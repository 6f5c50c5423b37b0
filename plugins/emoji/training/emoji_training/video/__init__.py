"""Emoji that move: the data, AnimateDiff's motion modules trained on it, and the prompt lists."""
