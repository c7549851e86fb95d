"""`mim3d probe`: what a checkpoint is worth to readers from the smallest to the whole network."""
