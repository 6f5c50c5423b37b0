"""The command line, `draft`."""
