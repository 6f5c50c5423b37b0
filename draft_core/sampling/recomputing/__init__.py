"""What a recorded network keeps for its backward pass, and how the rest is computed again."""
