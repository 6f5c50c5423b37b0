"""`python -m draft_core` is `draft`."""

from draft_core.cli import app

app(prog_name="draft")
