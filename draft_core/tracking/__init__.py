"""What a run tells TensorBoard, Weights & Biases and Trackio."""
