"""From images to a pipeline's finished latents, and from latents to its images, by its own encoder and decoder."""
