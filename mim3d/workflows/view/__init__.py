"""`mim3d view`: what was found, served to this machine alone."""
