"""Conjugacy discovered: the linear-Gaussian form of any Pyro model, or the reason why it has none.

discovery       ``linear_gaussian``, ``discover`` and the form that they return
probing         reads a form out of one call of the model
checks          tells whether the form holds: instances, modalities, affinity, densities
structures      rows that differ by covariates: a form each, or offsets
gaussian_sites  the mean and covariance of one sample site, however it is spelled
watching        data that remember which columns a model read
"""

from calmrl_prob.conjugacy.discovery import ConjugateForm, discover, linear_gaussian

__all__ = ["ConjugateForm", "discover", "linear_gaussian"]
