"""L-BFGS ascent, and chains of NUTS."""
