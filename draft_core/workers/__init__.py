"""Rewards in a process of another Python environment: this side, which starts the process and asks it."""
