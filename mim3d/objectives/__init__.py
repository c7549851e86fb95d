"""Floor 4: what one step minimises. Every objective has the same face: `task(batch, moment)`."""
