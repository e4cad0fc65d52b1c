"""What climbs and what walks: L-BFGS ascent, and NUTS chains."""
