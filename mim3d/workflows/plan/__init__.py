"""What a training will cost, told before it begins."""
