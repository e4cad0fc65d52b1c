"""Parts of ``experiments.compare``: the variants, their fits, and their measures."""
