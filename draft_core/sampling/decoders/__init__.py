"""What stands in the place of a pipeline's own decoder: a smaller one in training, or an end of the call."""
