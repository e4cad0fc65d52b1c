"""Latents that are coupled between instances by a Gaussian process: posterior and E-step."""
