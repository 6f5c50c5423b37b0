"""What is trained: LoRA on a pipeline's denoisers, and LoRAs as files."""
