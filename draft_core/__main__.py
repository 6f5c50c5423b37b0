"""`python -m draft_core` is `draft`."""

from draft_core.cli.app import app

app(prog_name="draft")
