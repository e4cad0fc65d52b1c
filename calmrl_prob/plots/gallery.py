"""Gallery of a retrieval: queries with their best candidates, as names, characters or pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calmrl_prob._support.arguments import described, whole_number
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.evaluation.retrieval.ranking import Retrieval
from calmrl_prob.plots.canvas import BLACK, GREEN, canvas, names_of, row_numbers
from calmrl_prob.plots.emoji import picture_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

#: Fonts to look for a character in; matplotlib draws outlines, not the bitmaps of colour fonts.
_FONTS = ("Noto Emoji", "OpenMoji", "Symbola", "Segoe UI Emoji", "Segoe UI Symbol", "Noto Sans Symbols", "DejaVu Sans")
#: Asks for a coloured form of the character before it, and has no form of its own.
_SELECTOR = "\N{VARIATION SELECTOR-16}"
_MOST_QUERIES = 30
_LINE_LENGTH = 16


def retrieval_gallery(
    found: Retrieval,
    names: Sequence[object],
    ax: Axes | None = None,
    *,
    query_names: Sequence[object] | None = None,
    pictures: Sequence[Any] | None = None,
    query_pictures: Sequence[Any] | None = None,
    queries: Sequence[int] | None = None,
    targets: ArrayLike | Tensor | None = None,
    top: int = 5,
) -> Axes:
    """Some queries, one a row, and their best candidates from left to right, the true one framed.

    Read off: what kind of mistakes there are. Beside each row stands the rank of the true candidate.

    Args:
        found: what :func:`calmrl_prob.retrieve` returns.
        names: of the candidates, (N_c,), such as ``data.covariates["caption"]``.
        ax: where to draw; new axes by default.
        query_names: of the queries, (N_q,); those of the candidates by default, where there are equally many.
        pictures: of the candidates, (N_c,): emoji, such as ``data.covariates["emoji"]``, or images (H, W),
            (H, W, 3) or (H, W, 4). Emoji are drawn in colour where the system has a font for them (Noto Color Emoji,
            those of macOS and Windows), else in black; what no installed font has is left to its name.
        query_pictures: of the queries; those of the candidates by default, where there are equally many.
        queries: row numbers of the queries to show, 30 at most; the first eight by default.
        targets: row number of the true candidate of each query, (N_q,), as given to ``retrieve``; by default the same
            row, where ``found`` has ranks and there are as many queries as candidates.
        top: how many candidates to show, at most those that ``found`` lists.

    Returns:
        The axes. Queries are at x = 0, the candidate of rank r at x = r, rows at y = 0, 1, ...

    Raises:
        ArgumentTypeError: ``found`` is no Retrieval, or names are no sequence.
        ArgumentError: numbers of names do not fit; or ``targets`` contradict the ranks in ``found``.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> top = np.array([[0, 2], [2, 1]])
        >>> found = Retrieval("likelihood_ratio", 3, top, np.zeros((2, 2)), ranks=np.array([1, 2]))
        >>> ax = retrieval_gallery(
        ...     found, ["cat", "dog", "fox"], query_names=["miaow", "woof"], targets=[0, 1], pictures=["\u263a", "", ""]
        ... )
        >>> ax.get_title()
        'Best 2 of 3 candidates by likelihood ratio'
    """
    if not isinstance(found, Retrieval):
        raise ArgumentTypeError(f"found: expected what cal.retrieve returns, got {described(found)}.")
    num_queries, listed = found.top_indices.shape
    top = min(whole_number("top", top, least=1), listed)
    if top == 0:
        raise ArgumentError("found: it lists no candidates; call retrieve with a top_k of at least 1.")
    shown = row_numbers(
        "queries", range(min(8, num_queries)) if queries is None else queries, num_queries, _MOST_QUERIES
    )
    candidate_names = names_of("names", names, found.num_candidates)
    same = num_queries == found.num_candidates
    if query_names is None and not same:
        raise ArgumentError(
            f"query_names: there are {num_queries} queries and {len(names)} candidates; name the queries."
        )
    asked = candidate_names if query_names is None else names_of("query_names", query_names, num_queries)
    drawn = _pictures("pictures", pictures, found.num_candidates)
    if query_pictures is None and not same:
        asked_drawn: Sequence[Any] = [None] * num_queries
    else:
        asked_drawn = drawn if query_pictures is None else _pictures("query_pictures", query_pictures, num_queries)
    true = _targets(found, targets, shown)
    with canvas(ax, (1.25 * (top + 2), 0.85 * len(shown) + 0.9)) as ax:
        for y, query in enumerate(shown):
            _cell(ax, 0, y, asked[query], asked_drawn[query])
            for place, candidate in enumerate(found.top_indices[query, :top].tolist(), start=1):
                if candidate < 0:
                    continue
                _cell(ax, place, y, candidate_names[candidate], drawn[candidate])
                if true is not None and true[query] == candidate:
                    _frame(ax, place, y)
            if found.ranks is not None:
                ax.text(top + 0.6, y, f"rank {found.ranks[query]:,}", va="center", ha="left", fontsize="small")
        ax.axvline(0.5, color=BLACK, linewidth=1)
        ax.set(
            title=f"Best {top} of {found.num_candidates:,} candidates by {found.score.replace('_', ' ')}",
            xlabel="query, then candidates by rank" + ("; framed: the true one" if true is not None else ""),
            ylabel="queries",
            xlim=(-0.5, top + (1.4 if found.ranks is not None else 0.5)),
            ylim=(len(shown) - 0.5, -0.5),
        )
        ax.set_xticks(range(top + 1), ["query", *map(str, range(1, top + 1))])
        ax.set_yticks([])
        ax.tick_params(length=0)
        ax.grid(visible=False)
        return ax


def _targets(found: Retrieval, targets: ArrayLike | Tensor | None, shown: Sequence[int]) -> NDArray[np.int64] | None:
    """The true candidate of each query, where it is known, after a look at whether ranks bear it out."""
    num_queries = len(found.top_indices)
    if targets is None:
        if found.ranks is None or num_queries != found.num_candidates:
            return None
        targets = np.arange(num_queries)
    rows = np.asarray(targets)
    if rows.shape != (num_queries,) or rows.dtype.kind not in "iu":
        raise ArgumentError(f"targets: expected {num_queries} row numbers, got {rows.dtype} of shape {rows.shape}.")
    for query in () if found.ranks is None else shown:
        assert found.ranks is not None  # or there would be no query
        place = int(found.ranks[query])
        listed = found.top_indices[query].tolist()
        if place <= len(listed) and rows[query] not in listed[:place]:  # with ties it may come before its rank
            raise ArgumentError(
                f"targets: query {query} has its true candidate at rank {place}, which is not row {rows[query]}; "
                "pass the targets that retrieve was given, or found by ids."
            )
    return rows.astype(np.int64)


def _pictures(argument: str, pictures: Sequence[Any] | None, count: int) -> Sequence[Any]:
    if pictures is None:
        return [None] * count
    names_of(argument, pictures, count)
    return pictures


def _cell(ax: Axes, x: float, y: float, name: str, picture: Any) -> None:  # noqa: ANN401 - a character or an image
    """A name, and a picture above it where there is one that can be drawn."""
    if isinstance(picture, str):
        in_colour = picture_of(picture)
        picture = picture if in_colour is None else in_colour
    font = _font(str(picture)) if isinstance(picture, str) else None
    image = picture is not None and not isinstance(picture, str)
    if font is not None:
        text = str(picture).replace(_SELECTOR, "")
        ax.text(x, y - 0.14, text, ha="center", va="center", font=font, fontsize=16)
    elif image:
        from matplotlib.offsetbox import AnnotationBbox, OffsetImage

        pixels = np.asarray(picture)
        box = OffsetImage(pixels, zoom=24 / max(pixels.shape[:2]), cmap="gray")
        ax.add_artist(AnnotationBbox(box, (x, y - 0.14), frameon=False))
    below = font is not None or image
    ax.text(x, y + (0.32 if below else 0), _wrapped(name), ha="center", va="center", fontsize=7, linespacing=0.9)


def _frame(ax: Axes, x: float, y: float) -> None:
    from matplotlib.patches import Rectangle

    ax.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, edgecolor=GREEN, linewidth=2))


def _wrapped(name: str) -> str:
    """A name on two lines at most, cut where it is longer."""
    import textwrap

    return "\n".join(textwrap.wrap(name, _LINE_LENGTH, max_lines=2, placeholder=" ..."))


@cache
def _font(character: str) -> Path | None:
    """The file of the first font that has this character; none for sequences, which need shaping."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    bare = character.replace(_SELECTOR, "")
    if len(bare) != 1:
        return None
    installed = {entry.name for entry in font_manager.fontManager.ttflist}
    for family in _FONTS:
        if family in installed:
            file = font_manager.findfont(family)  # of its faces the one that text is drawn with
            if FT2Font(file).get_char_index(ord(bare)):
                return Path(file)
    return None
