"""Whether what a route computes is exact, in words: for the texts of forms and of posteriors."""

from __future__ import annotations

#: How each route that is not in closed form computes; the names of those that are begin with "exact".
_APPROXIMATE = {
    "scale mixture": "by weighted draws",
    "svi": "by weighted draws from a normal guide",
    "nuts": "by Markov chains",
    "gaussian process": "by inducing points",
    "collapsed": "by draws of the parameters",  # and "collapsed nuts" and so on
}


def route_in_words(route: str, how: str | None = None) -> str:
    """The route as texts have it: a name that begins with "exact" says so itself, of others what they do is added.

    Args:
        route: its name.
        how: in place of what the route does by itself, such as "by quadrature"; "exact" where it is.

    Example:
        >>> route_in_words("exact by structure"), route_in_words("svi")
        ("route='exact by structure'", "route='svi', approximate: by weighted draws from a normal guide")
    """
    if route.startswith("exact"):
        return f"route={route!r}"
    if how == "exact":
        return f"route={route!r}, exact"
    how = how or _APPROXIMATE.get(route, _APPROXIMATE.get(route.split()[0]))
    return f"route={route!r}" if how is None else f"route={route!r}, approximate: {how}"
