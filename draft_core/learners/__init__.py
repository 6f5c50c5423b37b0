"""Learners: what a method makes of images and scores, as losses for the trainer."""
