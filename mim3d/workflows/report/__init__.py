"""`mim3d report`: what was run and what came of it, on one page that needs no network."""
