"""Floor 5: The one loop, its optimiser, checkpoints and logs."""
