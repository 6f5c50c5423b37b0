"""Learners: how the scores of a batch become losses; come here to add a method."""
