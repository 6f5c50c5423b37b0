"""Parts of loading a pipeline."""
