"""A recipe becomes a finished run folder."""
