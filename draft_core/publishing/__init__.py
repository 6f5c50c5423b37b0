"""A plugin of one's own: `draft new-...` writes its project, and `draft rewards check --release` says what it lacks."""
