"""The Hydra experiments: each a module to run with ``python -m``, from a checkout of the repository."""
