"""Floor 5: From a network and a volume to a segmented volume."""
