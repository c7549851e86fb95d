"""Floor 5: Metrics that cannot flatter, their intervals and tables."""
