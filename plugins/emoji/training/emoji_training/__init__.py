"""The stages that make the embedded model, in the order `train.py` runs them."""
