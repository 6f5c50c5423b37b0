"""What is trained: LoRA on a pipeline's denoisers or attention to people, and both as files."""
