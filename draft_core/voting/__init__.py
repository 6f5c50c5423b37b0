"""Asks a person which of two images is better, on a page of this machine, and keeps the answers in a file."""
