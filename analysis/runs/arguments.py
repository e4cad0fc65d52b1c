"""Arguments of the commands of ``analysis``, written as those of the experiments: ``name=value``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from calmrl_prob.errors import ArgumentError


def parse(arguments: Sequence[str], known: Mapping[str, str], first: str) -> dict[str, str]:
    """The values by name.

    Args:
        arguments: of the command line: "name=value", and one without a name.
        known: the names there are, and what each takes.
        first: the name of the one without: a folder is mostly given so.

    Raises:
        ArgumentError: a name that is not there, one given twice, or none for ``first``.

    Example:
        >>> parse(["outputs/1", "level=0.9"], {"run": "a folder", "level": "of the intervals"}, "run")
        {'run': 'outputs/1', 'level': '0.9'}
    """
    usage = ", ".join(f"{name}=<{what}>" for name, what in known.items())
    found: dict[str, str] = {}
    for word in arguments:
        name, equals, value = word.partition("=")
        if not equals or "/" in name:  # a path may hold the sign too
            name, value = first, word
        if name not in known:
            raise ArgumentError(f"{name}: expected one of {usage}; got {word!r}.")
        if name in found:
            raise ArgumentError(
                f"{name}: expected once, got {found[name]!r} and {value!r}; the arguments are {usage}, and several "
                "folders are parted by commas."
            )
        found[name] = value
    if not found.get(first):
        raise ArgumentError(f"{first}: expected <{known[first]}>; the arguments are {usage}.")
    return found
