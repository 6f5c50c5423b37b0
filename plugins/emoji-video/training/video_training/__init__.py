"""Makes the small video model: clips of moving emoji, its training, its export."""
