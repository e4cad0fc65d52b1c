"""Draws the floors of the library into docs/images/floors.svg, from the table of floors and from the imports.

Run ``python -m docs.make_floors`` when a test says that the picture is not of the present imports. An arrow is an
import. Left out of the drawing, and kept in the list that the file ends with, are those that a chain of others implies
and those of what nearly all import.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from html import escape

from tests.house.floors import FLOORS, arrows
from tests.house.imports import ROOT

PICTURE = ROOT / "docs" / "images" / "floors.svg"
HEIGHT, STEP, LEFT, GAP = 26, 62, 200, 14  # of a box, from floor to floor, of the titles, between boxes
SWEEPS = 60
UNDER_ALL = ("errors", "_support")

Arrow = tuple[str, str]
Place = tuple[str, int]  # a package, or an arrow on its way, and the floor


def drawn(found: set[Arrow]) -> list[Arrow]:
    """The arrows that no chain of others implies."""
    below = defaultdict(set)
    for start, end in found:
        below[start].add(end)

    def reached(package: str) -> set[str]:
        return below[package].union(*map(reached, below[package]))

    shown = {(a, b) for a, b in found if a == "_support" or b not in UNDER_ALL}
    return sorted((a, b) for a, b in shown if not any(b in reached(other) for other in below[a]))


def routes(found: list[Arrow]) -> list[list[Place]]:
    """Of each arrow the places that it passes, floor by floor, from its head up."""
    level = {package: i for i, floor in enumerate(FLOORS.values()) for package in floor}
    return [
        [(b, level[b]), *((f"{a} to {b}", i) for i in range(level[b] + 1, level[a])), (a, level[a])] for a, b in found
    ]


def width(place: Place) -> int:
    """Room that a place takes: a box as its name is long, an arrow little."""
    return 16 if " to " in place[0] else 22 + 7 * len(label(place[0]))


def label(package: str) -> str:
    """The name of a package in its box: on the floors of the engine without what all of them begin with."""
    return re.sub("^linear_gaussian/(?=.*[a-z])", "", package)


def centres(found: list[list[Place]]) -> dict[Place, float]:
    """Where each place is from left to right: near those it is joined with, and clear of its neighbours."""
    floors: list[list[Place]] = [[(package, i) for package in floor] for i, floor in enumerate(FLOORS.values())]
    joined: dict[Place, list[Place]] = defaultdict(list)
    for route in found:
        for place in route[1:-1]:
            floors[place[1]].append(place)
        for one, other in itertools.pairwise(route):
            joined[one].append(other)
            joined[other].append(one)
    x: dict[Place, float] = {}
    for floor in floors:
        x |= spread(floor, dict.fromkeys(floor, 500.0))
    for sweep in range(SWEEPS):
        for floor in floors if sweep % 2 else floors[::-1]:
            near = {p: sum(x[q] for q in joined[p]) / len(joined[p]) if joined[p] else x[p] for p in floor}
            if sweep < SWEEPS // 2:
                floor.sort(key=lambda place: near[place])
            x |= spread(floor, near)
    return x


def spread(floor: list[Place], wanted: dict[Place, float]) -> dict[Place, float]:
    """The places of a floor in their order, as near to where they are wanted as they fit beside each other."""
    groups: list[tuple[list[Place], float, float]] = []  # places that touch, their width, the middle that they want
    for place in floor:
        group, size, middle = [place], float(width(place) + GAP), wanted[place]
        while groups and groups[-1][2] + groups[-1][1] / 2 > middle - size / 2:
            before, its, its_middle = groups.pop()
            weight = len(before) / (len(before) + len(group))
            middle = weight * (its_middle + size / 2) + (1 - weight) * (middle - its / 2)
            group, size = before + group, its + size
        groups.append((group, size, middle))
    x = {}
    for group, size, middle in groups:
        start = middle - size / 2
        for place in group:
            x[place] = start + (width(place) + GAP) / 2
            start += width(place) + GAP
    return x


def picture() -> str:
    """The drawing, as SVG."""
    found = arrows()
    ways = routes(drawn(found))
    x = centres(ways)
    shift = LEFT - min(x[p] - width(p) / 2 for p in x)
    at = {place: round(value + shift) for place, value in x.items()}
    right, bottom = max(at[p] + width(p) // 2 for p in at) + GAP, STEP * len(FLOORS)
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" font-size="12" font-family="monospace" '
        f'viewBox="0 0 {right} {bottom}">',
        "<title>The floors of calmrl_prob: an arrow is an import</title>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#777"/></marker></defs>',
        f'<rect width="{right}" height="{bottom}" fill="#fff"/>',
    ]
    for i, title in enumerate(FLOORS):
        top = bottom - STEP * (i + 1)
        shade = "#f4f6f8" if i % 2 else "#fff"
        lines.append(f'<rect y="{top}" width="{right}" height="{STEP}" fill="{shade}"/>')
        lines.append(f'<text x="12" y="{top + STEP // 2 + 4}" font-family="sans-serif">{escape(title)}</text>')
    lines += [f'<path d="{curve(way, at, bottom)}" fill="none" stroke="#777" marker-end="url(#head)"/>' for way in ways]
    for place, centre in at.items():
        if " to " not in place[0]:
            y = height(place[1], bottom) - HEIGHT // 2
            lines.append(
                f'<rect x="{centre - width(place) // 2}" y="{y}" width="{width(place)}" height="{HEIGHT}" rx="4" '
                'fill="#dbe9f6" stroke="#4a7ba6"/>'
            )
            lines.append(f'<text x="{centre}" y="{y + 17}" text-anchor="middle">{label(place[0])}</text>')
    listed = (f"{a}: {' '.join(sorted(b for start, b in found if start == a))}" for a in sorted({a for a, _ in found}))
    return "\n".join([*lines, "<!-- all imports:", *listed, "-->", "</svg>", ""])


def height(level: int, bottom: int) -> int:
    """Where the middle of a floor is."""
    return bottom - STEP * level - STEP // 2


def curve(way: list[Place], at: dict[Place, int], bottom: int) -> str:
    """The path of an arrow, down from its package by the places between."""
    points = [(at[place], height(place[1], bottom)) for place in way[::-1]]
    (x, y), steps = points[0], []
    y += HEIGHT // 2
    for i, (to, middle) in enumerate(points[1:], start=2):
        end = middle - HEIGHT // 2
        bend = (end - y) // 2
        steps.append(f"C{x} {y + bend} {to} {end - bend} {to} {end}")
        if i < len(points):
            steps.append(f"V{middle + HEIGHT // 2}")
        x, y = to, middle + HEIGHT // 2
    return f"M{points[0][0]} {points[0][1] + HEIGHT // 2}" + "".join(steps)


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
