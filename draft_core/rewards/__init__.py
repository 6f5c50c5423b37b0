"""What a reward file builds on."""
