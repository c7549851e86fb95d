"""From what mim3d made to what other programs read."""
