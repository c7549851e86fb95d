"""Floor 0: errors, randomness, whole writes, versions, reporting. Imports nothing of mim3d."""
