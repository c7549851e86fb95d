"""Floor 6: The verbs as plain functions: one typed config in, one result object out."""
