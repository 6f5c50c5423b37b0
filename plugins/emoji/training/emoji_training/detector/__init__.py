"""Training of `emoji-detector`, an OWL-ViT that finds emoji in collages by their names."""
