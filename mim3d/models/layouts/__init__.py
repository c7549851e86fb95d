"""Checkpoints of other programs: their keys as data, and their tensors in our shapes."""
