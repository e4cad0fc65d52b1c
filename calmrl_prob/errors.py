"""The typed errors and warnings of calmrl_prob.

Every error raised on purpose is a :class:`CalmrlError`, so one ``except`` clause catches them all; each is also the
built-in error that Python users expect (``ValueError`` or ``TypeError``). A message names the argument, what was
expected, what came, where it was found (modality and row) and what to do about it.
"""

from __future__ import annotations


class CalmrlError(Exception):
    """Base class of every error that calmrl_prob raises on purpose."""


class ArgumentError(CalmrlError, ValueError):
    """An option or hyperparameter has a value that cannot work."""


class ArgumentTypeError(CalmrlError, TypeError):
    """An argument has a type that cannot be used."""


class DataError(CalmrlError, ValueError):
    """The data break a rule: infinities, partly missing rows, empty instances, different row counts ..."""


class SchemaError(DataError):
    """The modalities of the data do not fit those of the model: unknown names or other widths."""


class FileFormatError(CalmrlError, ValueError):
    """A file is missing what is needed, is damaged, or was not written by calmrl_prob."""


class ModelError(CalmrlError, ValueError):
    """A Pyro model breaks the form that every route needs: the plate, one observed site per modality, stable sites."""


class NotConjugateError(CalmrlError, ValueError):
    """A Pyro model has no linear-Gaussian form.

    Attributes:
        site: the sample site that breaks the form.
        condition: which condition it breaks, such as "non-gaussian prior" or "location not affine".
        route: the route that serves instead.
    """

    def __init__(self, site: str, condition: str, detail: str, route: str) -> None:
        super().__init__(f"site {site!r}: {condition}. {detail} The route that serves: {route}.")
        self.site, self.condition, self.route = site, condition, route


class NumericalError(CalmrlError, ArithmeticError):
    """A computation left the range where its result means anything (a precision not positive definite, say)."""


class DistributedError(CalmrlError, RuntimeError):
    """A cluster failed: no workers, a scheduler that is gone, workers that cannot do what they were asked to."""


class MissingDependencyError(CalmrlError, ImportError):
    """An optional package that something needs is not installed; the message says what to install."""


class CalmrlWarning(UserWarning):
    """Base class of the warnings that calmrl_prob issues."""


class IdentifiabilityWarning(CalmrlWarning):
    """The data cannot tell what the model would need, such as how two modalities that never meet go together."""


class ConvergenceWarning(CalmrlWarning):
    """An iteration stopped before its criterion was met."""


class UnfittedWarning(CalmrlWarning):
    """A model is asked about data while its parameters are still the random ones that it starts from."""


class ReliabilityWarning(CalmrlWarning):
    """An approximate method finished, and its own diagnostics say that the result may be off.

    Divergent transitions, R-hat above 1.01, a Pareto k-hat above 0.7. The numbers are in the result's diagnostics.
    """
