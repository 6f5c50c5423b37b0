"""What a program or a notebook calls in one line."""
