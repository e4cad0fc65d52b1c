"""Parts of ``experiments.small_data``: the contenders, and their choice of settings."""
