"""Curvature of the exact evidence: its gradient, the observed information, Laplace draws."""
