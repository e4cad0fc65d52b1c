"""Heavy tails: linear-Gaussian models whose scales vary by instance, their posterior and their EM."""
