"""Objectives as plain loops over instances, modalities and candidates, in float64: what the batched ones must equal.

Nothing here is shared with the package: singular values come from an SVD, volumes from determinants of explicit
vectors, areas from Heron's formula.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from calmrl_prob.alignment.views import Views

Pair = Callable[[int, int], Tensor]  # similarity of row a with candidate b, over its temperature
Weight = Callable[[int], Tensor]
FLOOR = 1e-6  # added to squared volumes, squared areas and squared singular values before their square root


def mean_contrast(size: int, directions: Sequence[tuple[Pair, Weight, Weight]]) -> Tensor:
    """Weighted mean of -log softmax of the matching candidate, over rows and over (similarity, term, candidate)."""
    total, weight = torch.zeros(()).double(), torch.zeros(()).double()
    for similarity, term, candidate in directions:
        for a in range(size):
            if float(term(a)) == 0:
                continue
            mass = similarity(a, a).exp()
            for b in range(size):
                if b != a:
                    mass = mass + candidate(b) * similarity(a, b).exp()
            total = total + term(a) * (mass.log() - similarity(a, a))
            weight = weight + term(a)
    return total / weight if float(weight) else total


def pairwise(views: Views, temperature: float, pairs: Sequence[tuple[int, int]] | None = None) -> Tensor:
    x, w = views.values, views.weights
    size, modalities, _ = x.shape
    directions: list[tuple[Pair, Weight, Weight]] = [
        (
            lambda a, b, i=i, j=j: x[a, i] @ x[b, j] / temperature,
            lambda a, i=i, j=j: w[a, i] * w[a, j],
            lambda b, j=j: w[b, j],
        )
        for i, j in (itertools.permutations(range(modalities), 2) if pairs is None else pairs)
    ]
    return mean_contrast(size, directions)


def anchored(views: Views, temperature: float, anchor: int) -> Tensor:
    others = [i for i in range(views.shape[1]) if i != anchor]
    return pairwise(views, temperature, [(anchor, i) for i in others] + [(i, anchor) for i in others])


def leading_vectors(views: Views) -> list[Tensor]:
    vectors = []
    for x, w in zip(views.values, views.weights, strict=True):
        _, _, rows = torch.linalg.svd(w.sqrt()[:, None] * x, full_matrices=False)
        parts = w.sqrt() * (x @ rows[0])
        lean = float(w.sqrt() @ parts)
        if abs(lean) < 1e-8:  # two views at an obtuse angle: orthogonal to their sum
            lean = float(next(part for part in parts if abs(part) >= 0.5 * parts.abs().max()))
        vectors.append(rows[0] if lean >= 0 else -rows[0])
    return vectors


def to_anchors(views: Views, temperature: float) -> Tensor:
    anchors = leading_vectors(views) if views.anchors is None else list(views.anchors)
    heaviest = views.weights.max(1).values
    return mean_contrast(
        views.shape[0],
        [
            (
                lambda a, b, i=i: views.values[a, i] @ anchors[b] / temperature,
                lambda a, i=i: views.weights[a, i] * heaviest[a],
                lambda b: heaviest[b],
            )
            for i in range(views.shape[1])
        ],
    )


def pmrl(views: Views, singular_temperature: float, temperature: float) -> Tensor:
    size = views.shape[0]
    total, weight = torch.zeros(()).double(), torch.zeros(()).double()
    for x, w in zip(views.values, views.weights, strict=True):
        if int((w > 0).sum()) < 2:
            continue
        present = (w.sqrt()[:, None] * x)[w > 0]
        squares = torch.zeros(len(present)).double()
        found = torch.linalg.svdvals(present).square()
        squares[: len(found)] = found
        logits = (squares + FLOOR).sqrt() / singular_temperature
        first, second = w.sort(descending=True).values[:2]
        total = total + first * second * (logits.exp().sum().log() - logits[0])
        weight = weight + first * second
    vectors, heaviest = leading_vectors(views), views.weights.max(1).values
    contrast = mean_contrast(
        size, [(lambda a, b: vectors[a] @ vectors[b] / temperature, lambda a: heaviest[a], lambda b: heaviest[b])]
    )
    return (total / weight if float(weight) else total) + contrast


def gram(views: Views, temperature: float) -> Tensor:
    x, w = views.values, views.weights
    size, modalities, _ = x.shape

    def similarity(a: int, b: int, i: int) -> Tensor:
        vectors = [torch.cat([x[a, i], torch.zeros(modalities).double()])]
        for j in range(modalities):
            if j != i:  # what is partly there is partly a direction of its own
                own = torch.eye(modalities).double()[j]
                vectors.append(torch.cat([w[b, j].sqrt() * x[b, j], (1 - w[b, j]).sqrt() * own]))
        edges = torch.stack(vectors)
        return -(torch.linalg.det(edges @ edges.mT).clamp(min=0) + FLOOR).sqrt() / temperature

    def group(b: int, i: int) -> Tensor:
        return torch.stack([w[b, j] for j in range(modalities) if j != i]).max()

    directions: list[tuple[Pair, Weight, Weight]] = []
    for i in range(modalities):
        term = lambda a, i=i: w[a, i] * group(a, i)  # noqa: E731
        directions.append((lambda a, b, i=i: similarity(a, b, i), term, lambda b, i=i: group(b, i)))
        directions.append((lambda b, a, i=i: similarity(a, b, i), term, lambda a, i=i: w[a, i]))
    return mean_contrast(size, directions)


def triangle(views: Views, temperature: float) -> Tensor:
    x, w = views.values, views.weights

    def similarity(a: int, b: int, i: int, j: int, k: int) -> Tensor:
        corners = x[a, i], x[b, j], x[b, k]
        sides = [(corners[p] - corners[q]).norm() for p, q in ((0, 1), (0, 2), (1, 2))]
        half = sum(sides) / 2
        area_squared = half * math.prod(half - side for side in sides)
        return -(area_squared.clamp(min=0) + FLOOR).sqrt() / temperature

    directions: list[tuple[Pair, Weight, Weight]] = []
    for i in range(views.shape[1]):
        for j, k in itertools.combinations([m for m in range(views.shape[1]) if m != i], 2):
            term = lambda a, i=i, j=j, k=k: w[a, i] * w[a, j] * w[a, k]  # noqa: E731
            directions.append(
                (lambda a, b, r=(i, j, k): similarity(a, b, *r), term, lambda b, j=j, k=k: w[b, j] * w[b, k])
            )
            directions.append((lambda b, a, r=(i, j, k): similarity(a, b, *r), term, lambda a, i=i: w[a, i]))
    return mean_contrast(views.shape[0], directions)


def matching(views: Views, scale: float, bias: float) -> Tensor:
    x, w = views.values, views.weights * views.observed_mask
    total, matches = torch.zeros(()).double(), torch.zeros(()).double()
    for i, j in itertools.combinations(range(views.shape[1]), 2):
        for a, b in itertools.product(range(len(x)), repeat=2):
            logit = scale * (x[a, i] @ x[b, j]) + bias
            probability = torch.sigmoid(logit if a == b else -logit)
            total = total - w[a, i] * w[b, j] * probability.log()
            matches = matches + (w[a, i] * w[b, j] if a == b else 0)
    return total / matches if float(matches) else torch.zeros(()).double()
