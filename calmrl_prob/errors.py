"""The typed errors and warnings of calmrl_prob.

Every error raised on purpose is a :class:`CalmrlError`, so one ``except`` clause catches them all; each is also the
built-in error that Python users expect (``ValueError`` or ``TypeError``). A message names the argument, what was
expected, what came, where it was found (modality and row) and what to do about it. ``docs/errors.md`` is made of these
docstrings, with an example and the messages of each class.
"""

from __future__ import annotations


class CalmrlError(Exception):
    """Base class of every error that calmrl_prob raises on purpose.

    Caused by: as below; it is never raised itself, and catching it catches all of them.

    What to do: see the class that was raised. Any other error that comes out of calmrl_prob is a bug, but for Python's
    own ``FileNotFoundError`` of a path at which there is nothing, and what a model or function of yours raises.
    """


class ArgumentError(CalmrlError, ValueError):
    """An option or hyperparameter has a value that cannot work.

    Caused by: a number out of range, a misspelt option, an array of the wrong shape, options that exclude each other.

    What to do: the message begins with the argument's name and says what is expected of it: pass that.
    """


class ArgumentTypeError(CalmrlError, TypeError):
    """An argument has a type that cannot be used.

    Caused by: an array where ``MultimodalData`` is expected, a class instead of an object of it, a string instead of a
    list of strings, and the like.

    What to do: the message names the argument and the type that is expected: convert to that, or wrap it.
    """


class DataError(CalmrlError, ValueError):
    """The data break a rule: infinities, partly missing rows, empty instances, different row counts ...

    Caused by: ``MultimodalData`` that cannot be made of what was given, or data of which something cannot be computed,
    such as a fit of a modality that no row has.

    What to do: the message names the modality and the first row that breaks the rule: mend or leave out such rows, or
    pass the option that it names.
    """


class SchemaError(DataError):
    """The modalities of the data do not fit those of the model: unknown names, other widths, other features.

    Caused by: a misspelt modality, or data that were encoded otherwise than those of the fit.

    What to do: compare ``data.dims`` with ``model.dims``; choose modalities with ``data.select``, and encode new data
    as those of the fit.
    """


class UnknownModalityError(SchemaError, KeyError):
    """A modality was looked up that is not there; a KeyError too, as looking up in a mapping should raise.

    Caused by: asking data, or a result such as ``imputed.mean``, for a modality that it does not have.

    What to do: take one of the names in the message, or impute with ``names=`` that hold it.
    """

    __str__ = Exception.__str__  # a KeyError would show the message in quotes


class FileFormatError(CalmrlError, ValueError):
    """A file is missing what is needed, is damaged, or was not written by calmrl_prob.

    Caused by: another kind of file, one that was cut off or altered, or one of a newer version of calmrl_prob.

    What to do: write the file again, copy it again, or install the version that wrote it. ``cal.load`` reads what
    ``cal.save`` wrote, ``cal.load_npz`` what ``numpy.savez`` wrote, ``cal.from_arviz`` what ``cal.to_arviz`` gave.
    """


class ModelToLoadError(ArgumentError):
    """A file holds parameters of a user's own model, which was not given to ``cal.load``, or another one was.

    Caused by: files of fits of Pyro models and own modules, which hold parameters and no code.

    What to do: pass the model as it was fitted, ``cal.load(path, model=my_model)``.
    """


class ModelError(CalmrlError, ValueError):
    """A Pyro model breaks the form that every route needs: the plate, one observed site per modality, stable sites.

    Caused by: a plate that is not called "instances", a site that counts missing values, chance beside the sample
    sites, parameters that are NaN; or a model that is asked before it has parameters.

    What to do: the message names the site and the line to write; ``models/`` has complete models to copy.
    """


class NotConjugateError(CalmrlError, ValueError):
    """A Pyro model has no linear-Gaussian form.

    Caused by: asking for a closed form, as ``cal.discover`` and exact methods do, of a model with a site that has none.

    What to do: take the route that the message names, or let ``cal.fit`` and ``cal.posterior`` find it: method "auto".

    Attributes:
        site: the sample site that breaks the form.
        condition: which condition it breaks, such as "non-gaussian prior" or "location not affine".
        route: the route that serves instead.
    """

    def __init__(self, site: str, condition: str, detail: str, route: str) -> None:
        super().__init__(f"site {site!r}: {condition}. {detail} The route that serves: {route}.")
        self.site, self.condition, self.route = site, condition, route


class NumericalError(CalmrlError, ArithmeticError):
    """A computation left the range where its result means anything (a precision not positive definite, say).

    Caused by: values of extreme scale, single precision, a learning rate that is too high, or parameters that are NaN.

    What to do: rescale the data, use float64, or take the remedy of the message.
    """


class DistributedError(CalmrlError, RuntimeError):
    """A cluster failed: no workers, a scheduler that is gone, workers that cannot do what they were asked to.

    Caused by: a client that is not connected, workers without this package or without access to the same files, or too
    little memory for a chunk.

    What to do: see the workers' logs, mend that, and call again; what was written stays, and is not done again.
    """


class MissingDependencyError(CalmrlError, ImportError):
    """An optional package that something needs is not installed; the message says what to install.

    Caused by: plots, flows, Gaussian processes, training or ArviZ's file formats without the package that each needs.

    What to do: run the ``pip install`` of the message.
    """


class CalmrlWarning(UserWarning):
    """Base class of the warnings that calmrl_prob issues.

    Caused by: as below; filtering it filters all of them. Itself it is issued where options make each other useless.

    What to do: see the class that was issued. ``warnings.simplefilter("error", cal.CalmrlWarning)`` makes errors of
    them; ``warnings.filterwarnings`` with a class of these silences what you have looked at.
    """


class IdentifiabilityWarning(CalmrlWarning):
    """The data cannot tell what the model would need, such as how two modalities that never meet go together.

    Caused by: groups of modalities that no instance links, neither directly nor by way of others; files read together
    whose ids have nothing in common, as where one has "cell-1" and the other "CELL_1".

    What to do: add instances that have modalities of two groups, or model each group by itself;
    ``data.modality_groups()`` lists them. Write the ids of files alike.
    """


class ConvergenceWarning(CalmrlWarning):
    """An iteration stopped before its criterion was met.

    Caused by: ``max_iterations`` that were too few, or a ``tolerance`` that rounding does not reach.

    What to do: raise ``max_iterations``; if ``fit.log_likelihood`` has levelled off, raise ``tolerance`` or go on.
    """


class UnfittedWarning(CalmrlWarning):
    """A model is asked about data while its parameters are still the random ones that it starts from.

    Caused by: calling ``cal.posterior`` or ``cal.impute`` before ``cal.fit``, or with another model than was fitted.

    What to do: fit first, and pass what ``cal.fit`` returns or its ``.model``.
    """


class ReliabilityWarning(CalmrlWarning):
    """A method finished, and its own diagnostics say that the result may be off.

    Caused by: approximate routes with divergent transitions, R-hat above 1.01 or a Pareto k-hat above 0.7; few rows for
    many latents; modalities that the others tell nothing of; calibration by rows that the model was fitted to.

    What to do: the message has the figure and the remedy; the numbers are in the result's ``diagnostics`` or
    ``fit.choice``. Do not report intervals or evidence of such a result before it is mended.
    """
