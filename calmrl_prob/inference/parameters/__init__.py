"""Global latents: their mode and their draws, with the latents of the instances marginalised exactly."""
