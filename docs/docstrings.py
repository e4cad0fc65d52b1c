"""The dialect of this package's docstrings, told to the reference: roles become links, an ``Example:`` a section.

A griffe extension, named in ``mkdocs.yml``.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

#: ``:func:`~calmrl_prob.fit```, and the like.
ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`(?P<short>~?)(?P<name>[\w.]+)`")
EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)


class Dialect(griffe.Extension):
    """Rewrites each docstring as it is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Roles to links, which stay code where nothing of that name is documented."""
        if obj.docstring is None:
            return
        text = EXAMPLE.sub(r"\1Examples:", obj.docstring.value)
        obj.docstring.value = ROLE.sub(lambda role: linked(role, obj), text)


def linked(role: re.Match[str], obj: griffe.Object) -> str:
    """The role as a link by name, which is dropped silently where the name has no place in the site."""
    name = role["name"]
    shown = name.rsplit(".", 1)[-1] if role["short"] else name
    if name.startswith("calmrl_prob"):
        found = name
    else:
        try:
            found = obj.resolve(name)
        except griffe.NameResolutionError:
            return f"`{shown}`"
    return f'<autoref optional identifier="{found}">`{shown}`</autoref>'
