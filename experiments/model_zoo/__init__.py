"""Parts of ``experiments.models``: the table of the models in ``models/``."""
