"""Floor 7: The command line: arguments to config to workflow to exit code."""
