"""A plan becomes images, through a diffusers pipeline's own call."""
