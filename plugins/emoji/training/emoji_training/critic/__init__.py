"""The model that answers questions about emoji: its collages, questions, words, and training."""
