"""Floor 5: Arrays in, PNG out."""
