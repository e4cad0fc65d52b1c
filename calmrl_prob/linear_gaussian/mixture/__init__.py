"""Mixtures of linear-Gaussian models: their posterior and their EM."""
