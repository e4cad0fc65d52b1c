"""Maximum likelihood by EM: statistics, E-step forms, M-step, acceleration, priors of the parameters."""
