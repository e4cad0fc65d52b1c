"""Measurements, each against the bare matrix products or a peer of the same run. ``python -m benchmarks`` runs all."""
