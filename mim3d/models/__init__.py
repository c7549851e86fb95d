"""Floor 3: The encoder, its decoders and the transfer of weights."""
