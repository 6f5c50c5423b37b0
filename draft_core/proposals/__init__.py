"""What a new recipe starts from: models and rewards with their first settings, and what fits on a card."""
