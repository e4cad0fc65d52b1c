"""Parts of ``experiments.defaults``: what a user gets who chooses nothing, against references, on many data sets."""
