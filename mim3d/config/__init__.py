"""Floor 0: all that a user can set, as frozen dataclasses with a docstring per field."""
