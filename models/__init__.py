"""Generative models written out in Pyro, one short file each, to read, to copy and to change.

Each is a torch module whose ``forward(data)`` is the model: one plate "instances", one latent site in it, and one
observed site per modality, named as the modality. ``linear_gaussian()`` states it in the form that the exact engine
takes, so that ``calmrl_prob.posterior``, ``impute`` and ``to_arviz`` work with it; with ``load_linear_gaussian`` also
``calmrl_prob.fit``.
"""
