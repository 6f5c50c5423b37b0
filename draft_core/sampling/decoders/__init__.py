"""Networks that decode in the place of a pipeline's own decoder, in training."""
