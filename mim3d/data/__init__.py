"""Floor 1: files, cohorts, preparation, store, crops, feeds. Imports nothing by itself."""
