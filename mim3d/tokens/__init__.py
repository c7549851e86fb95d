"""Floor 2: From voxels to tokens: grids, patches, positions, masking, embedding."""
