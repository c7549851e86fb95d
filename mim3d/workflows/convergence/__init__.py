"""`mim3d benchmark convergence`: every method, label fraction and seed under one budget."""
