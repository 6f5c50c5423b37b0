"""Two things in one image, each in a colour asked for: the data, the model further trained on it, and its scorers."""
