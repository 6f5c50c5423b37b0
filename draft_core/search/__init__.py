"""Better images of a model as it is: search among seeds or in the initial noise, without training."""
