"""Generative models written out in Pyro, one short file each, to read, to copy and to change.

Each is a class whose objects are called with the data and run the model: one plate "instances", latent sites in it, one
observed site per modality, named as the modality, and outside the plate whatever has a prior of its own. That is all
that ``calmrl_prob.fit``, ``posterior``, ``impute``, ``retrieve`` and ``to_arviz`` need. Some offer more: closed-form EM
through ``load_linear_gaussian`` or a ``fit_to`` of their own, a ``posterior`` of their own where ``forward`` alone
would not be recognised.

A file of yours takes part in ``python -m experiments.compare model.file=path/to/mine.py`` if it has either a function
``build(dims, latent_dim, ...)`` that returns such a model, or one class of its own that takes ``(dims, latent_dim,
...)``, as the files here do: ``dims`` maps modalities to their numbers of features, ``latent_dim`` is K, which the
experiment chooses. An argument ``seed``, if there is one, gets the seed of the run; others come from
``+model.arguments.name=value``. In experiments the model sees each modality centred and of root mean square one.
"""
