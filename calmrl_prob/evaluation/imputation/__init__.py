"""Held-out imputation: what is masked, how it is predicted, and how well the predictive fits."""
