"""One contract for every alignment objective that is registered, and what is particular to some."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from calmrl_prob.alignment.objectives import (
    OBJECTIVES,
    PMRL,
    AnchorContrast,
    Anchored,
    Combined,
    Gram,
    Matching,
    Objective,
    Pairwise,
    Reconstruction,
    Triangle,
    make_objective,
)
from calmrl_prob.alignment.views import Views
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, SchemaError
from tests.cases import objective_oracles as oracles
from tests.cases.linear_gaussian_cases import random_mask

#: For each objective: one, and its plain-loop oracle.
CASES: dict[str, tuple[Callable[[], Objective], Callable[[Views], Tensor]]] = {
    "pmrl": (lambda: PMRL(0.3, 0.5), lambda views: oracles.pmrl(views, 0.3, 0.5)),
    "gram": (lambda: Gram(0.3), lambda views: oracles.gram(views, 0.3)),
    "triangle": (lambda: Triangle(0.3), lambda views: oracles.triangle(views, 0.3)),
    "pairwise": (lambda: Pairwise(0.3), lambda views: oracles.pairwise(views, 0.3)),
    "anchored": (lambda: Anchored(1, 0.3), lambda views: oracles.anchored(views, 0.3, 1)),
    "anchor": (lambda: AnchorContrast(0.3), lambda views: oracles.to_anchors(views, 0.3)),
    "matching": (lambda: Matching(0.2, -3.0, learnable=False), lambda views: oracles.matching(views, 5.0, -3.0)),
    "combined": (
        lambda: Combined(
            {"one": Pairwise(0.3), "other": Matching(0.2, -3.0, learnable=False)}, {"one": 1.0, "other": 0.1}
        ),
        lambda views: oracles.pairwise(views, 0.3) + 0.1 * oracles.matching(views, 5.0, -3.0),
    ),
}
SYMMETRIC = sorted(set(CASES) - {"anchored"})  # in the modalities

for_every_objective = pytest.mark.parametrize("name", CASES)


def case(name: str) -> Objective:
    return CASES[name][0]().double()


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator).double(), dim=-1)


def make_views(size: int = 6, modalities: int = 4, width: int = 5, seed: int = 0, *, rate: float = 0.3) -> Views:
    """Unit views, some absent, some imputed with a weight between 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    observed = random_mask(size, modalities, rate, seed)
    imputed = ~observed & (torch.rand(size, modalities, generator=generator) < 0.5)
    weights = observed.double() + imputed * torch.rand(size, modalities, generator=generator).double()
    values = unit(size, modalities, width, seed=seed) * (weights > 0)[:, :, None]
    return Views(values, weights, observed)


def of(values: Tensor, like: Views) -> Views:
    return replace(like, values=values)


def gradient(objective: Objective, views: Views) -> tuple[Tensor, Tensor]:
    values = views.values.detach().clone().requires_grad_()
    loss = objective(of(values, views))
    (slope,) = torch.autograd.grad(loss, values)
    return loss.detach(), slope


def test_every_registered_objective_has_a_case() -> None:
    assert set(CASES) == set(OBJECTIVES)
    for name, (build, _) in CASES.items():
        assert isinstance(build(), OBJECTIVES[name])
        assert OBJECTIVES[name].name == name


@for_every_objective
@pytest.mark.parametrize("seed", range(3))
def test_equals_plain_loops(name: str, seed: int) -> None:
    for views in (make_views(seed=seed), make_views(seed=seed, rate=0.0), make_views(4, 3, 2, seed=seed)):
        torch.testing.assert_close(case(name)(views), CASES[name][1](views), rtol=1e-10, atol=1e-10)


@for_every_objective
def test_single_precision_agrees(name: str) -> None:
    views = make_views(32, 4, 16)
    single = Views(views.values.float(), views.weights.float(), views.observed_mask)
    loss = case(name).float()(single)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), case(name)(views), rtol=1e-4, atol=1e-5)


@for_every_objective
def test_the_same_on_every_device(name: str, device: str) -> None:
    views = make_views(8, 4, 5)
    moved = Views(views.values.to(device), views.weights.to(device), views.observed_mask.to(device))
    loss = case(name).to(device)(moved)
    assert loss.device.type == torch.device(device).type
    torch.testing.assert_close(loss.cpu(), case(name)(views), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["pairwise", "anchored", "anchor"])
def test_cold_and_wrong_is_finite(name: str) -> None:
    """The right candidate 100 logits behind the others, and an absent one among them."""
    x = torch.eye(4)[:, None, :].repeat(1, 2, 1)
    x[:, 1] = -x[:, 0]
    views = Views.observed(x, torch.tensor([[1, 1], [1, 1], [1, 1], [1, 0]]).bool())
    if name == "anchor":
        views = replace(views, anchors=-x[:, 0])
    loss, slope = gradient(make_objective(name, temperature=0.01), views)
    torch.testing.assert_close(loss, torch.tensor(100.0), rtol=0.5, atol=0.0)
    assert slope.isfinite().all()


@for_every_objective
def test_half_precision_is_computed_in_single(name: str) -> None:
    views = make_views(16, 4, 16)
    half = Views(views.values.bfloat16(), views.weights.bfloat16(), views.observed_mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = case(name).float()(half)
    rounded = Views(half.values.double(), half.weights.double(), views.observed_mask)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), case(name)(rounded), rtol=1e-4, atol=1e-5)


@for_every_objective
@pytest.mark.parametrize("seed", range(2))
def test_gradient_at_random_points(name: str, seed: int) -> None:
    views, objective = make_views(4, 4, 3, seed=seed), case(name)
    assert torch.autograd.gradcheck(lambda x: objective(of(x, views)), views.values.clone().requires_grad_())


@for_every_objective
def test_gradient_of_the_parameters(name: str) -> None:
    views = make_views(4, 3, 3)
    learned = make_objective("matching" if name == "combined" else name, learnable=True)
    objective = (Combined({"part": learned}, {"part": 0.5}) if name == "combined" else learned).double()
    assert list(objective.parameters())
    for key, parameter in objective.named_parameters():
        start = parameter.detach().clone().requires_grad_()
        assert torch.autograd.gradcheck(
            lambda value, key=key: torch.func.functional_call(objective, {key: value}, (views,)), start
        )


def aligned(size: int = 5, modalities: int = 4, width: int = 5) -> Views:
    """Every view of an instance the same; instances orthogonal."""
    values = torch.eye(width).double()[:size, None, :].expand(size, modalities, width).clone()
    return Views.observed(values, torch.ones(size, modalities).bool())


@for_every_objective
def test_gradient_at_perfect_alignment(name: str) -> None:
    views, objective = aligned(3, 3, 4), case(name)
    loss, slope = gradient(objective, views)
    assert loss.isfinite()
    assert slope.isfinite().all()
    assert torch.autograd.gradcheck(lambda x: objective(of(x, views)), views.values.clone().requires_grad_())


@for_every_objective
def test_finite_at_perfect_alignment_in_single_precision(name: str) -> None:
    same = torch.nn.functional.normalize(torch.randn(8, 1, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    views = Views.observed(same.expand(8, 4, 32).clone(), torch.ones(8, 4).bool())
    loss, slope = gradient(case(name).float(), views)
    assert loss.isfinite()
    assert slope.isfinite().all()
    assert slope.abs().max() < 10


@for_every_objective
def test_gradient_at_ties(name: str) -> None:
    tied = torch.eye(5).double()[None, :3, :].expand(4, 3, 5).clone()  # orthonormal views: all singular values are one
    views, objective = Views.observed(tied, torch.ones(4, 3).bool()), case(name)
    loss, slope = gradient(objective, views)
    assert loss.isfinite()
    assert slope.isfinite().all()
    if name not in {"pmrl", "anchor"}:  # the leading value has a kink there, the leading vector a jump
        assert torch.autograd.gradcheck(lambda x: objective(of(x, views)), views.values.clone().requires_grad_())


@pytest.mark.parametrize("name", ["pmrl", "anchor"])
def test_gradient_where_lesser_singular_values_tie(name: str) -> None:
    x = torch.eye(5).double()[:3] + 0.7  # three views, each pair with the same angle
    views = Views.observed(torch.stack([x, x.flip(1), x.roll(1, 1)]), torch.ones(3, 3).bool())
    objective = case(name)
    assert torch.autograd.gradcheck(lambda x: objective(of(x, views)), views.values.clone().requires_grad_())


@for_every_objective
def test_gradient_where_instances_have_one_view_or_none(name: str) -> None:
    observed = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1]]).bool()
    views, objective = Views.observed(unit(5, 3, 4), observed), case(name)
    _, slope = gradient(objective, views)
    assert (slope[~observed] == 0).all()
    assert torch.autograd.gradcheck(lambda x: objective(of(x, views)), views.values.clone().requires_grad_())


@for_every_objective
def test_only_one_modality_in_the_whole_batch(name: str) -> None:
    observed = torch.tensor([[True, False, False]]).expand(4, 3)
    loss, slope = gradient(case(name), Views.observed(unit(4, 3, 5), observed))
    assert loss.isfinite()
    assert slope.isfinite().all()
    if name not in {"pmrl", "anchor"}:  # which keep instances apart even so
        assert loss == 0
        assert (slope == 0).all()


@for_every_objective
@pytest.mark.parametrize("shape", [(4, 3, 5), (0, 3, 5), (4, 1, 5), (1, 3, 5), (1, 1, 5)])
def test_nothing_to_contrast_is_zero(name: str, shape: tuple[int, int, int]) -> None:
    nobody = Views.observed(unit(*shape), torch.zeros(shape[:2]).bool())
    objective = Anchored(0) if name == "anchored" else case(name)
    loss, slope = gradient(objective, nobody)
    assert loss == 0
    assert (slope == 0).all()


@for_every_objective
def test_one_instance(name: str) -> None:
    views = Views.observed(unit(1, 3, 5), torch.ones(1, 3).bool())
    loss, slope = gradient(case(name), views)
    assert slope.isfinite().all()
    if name not in {"pmrl", "matching", "combined"}:  # which look at an instance by itself
        assert loss.abs() < 1e-12
        assert slope.abs().max() < 1e-12


@for_every_objective
def test_what_has_no_weight_changes_nothing(name: str) -> None:
    views, objective = make_views(), case(name)
    absent = (views.weights == 0)[:, :, None]
    assert absent.any()
    expected = gradient(objective, views)
    for filling in (7.0, float("nan"), float("inf")):
        loss, slope = gradient(objective, of(torch.where(absent, filling, views.values), views))
        assert loss == expected[0]
        assert torch.equal(slope, expected[1])


@for_every_objective
def test_an_instance_without_views_is_as_if_not_there(name: str) -> None:
    views, objective = make_views(), case(name)
    more = Views(
        torch.cat([views.values, unit(2, 4, 5, seed=9)]),
        torch.cat([views.weights, torch.zeros(2, 4).double()]),
        torch.cat([views.observed_mask, torch.zeros(2, 4).bool()]),
    )
    torch.testing.assert_close(objective(more), objective(views), rtol=1e-12, atol=1e-12)


@for_every_objective
def test_a_modality_that_nobody_has_is_as_if_not_there(name: str) -> None:
    views, objective = make_views(), case(name)
    more = Views(
        torch.cat([views.values, unit(6, 1, 5, seed=9)], 1),
        torch.cat([views.weights, torch.zeros(6, 1).double()], 1),
        torch.cat([views.observed_mask, torch.zeros(6, 1).bool()], 1),
    )
    torch.testing.assert_close(objective(more), objective(views), rtol=1e-12, atol=1e-12)


@for_every_objective
def test_a_vanishing_weight_is_as_none(name: str) -> None:
    """Nothing jumps where the confidence in an imputation goes to zero, but for PMRL's count of singular values."""
    views = make_views(rate=0.0)
    values, weights, observed = views.values.clone(), views.weights.clone(), views.observed_mask.clone()
    observed[0, 0] = False
    without, nearly = weights.clone(), weights.clone()
    without[0, 0], nearly[0, 0] = 0.0, 1e-9
    difference = case(name)(Views(values, nearly, observed)) - case(name)(Views(values, without, observed))
    assert difference.abs() < (1e-4 if name != "pmrl" else 0.2)


@for_every_objective
def test_order_of_instances_changes_nothing(name: str) -> None:
    views, objective = make_views(), case(name)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = Views(views.values[order], views.weights[order], views.observed_mask[order])
    torch.testing.assert_close(objective(moved), objective(views), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SYMMETRIC)
def test_order_of_modalities_changes_nothing(name: str) -> None:
    views, objective = make_views(), case(name)
    together = torch.nn.functional.normalize(views.values + unit(5), dim=-1)  # so that leading vectors have a sign
    views = of(torch.where((views.weights > 0)[:, :, None], together, 0), views)
    order = torch.tensor([2, 0, 3, 1])
    moved = Views(views.values[:, order], views.weights[:, order], views.observed_mask[:, order])
    torch.testing.assert_close(objective(moved), objective(views), rtol=1e-12, atol=1e-12)


@for_every_objective
def test_rotation_changes_nothing(name: str) -> None:
    views, objective = make_views(), case(name)
    rotation = torch.linalg.qr(unit(5, 5, seed=3)).Q
    torch.testing.assert_close(objective(of(views.values @ rotation, views)), objective(views), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"triangle"}))
def test_lowest_where_views_are_aligned(name: str) -> None:
    """All views of an instance the same, instances the corners of a simplex; but see the next test."""
    modalities = 2 if name == "gram" else 4
    objective = PMRL() if name == "pmrl" else case(name)
    corners = torch.nn.functional.normalize(torch.eye(5).double() - 0.2, dim=-1)
    views = Views.observed(corners[:, None, :].expand(5, modalities, 5), torch.ones(5, modalities).bool())
    best = objective(views)
    for seed in range(10):
        noise = unit(5, modalities, 5, seed=seed)
        moved = torch.nn.functional.normalize(views.values + 0.5 * noise, dim=-1)
        assert objective(of(moved, views)) > best
        assert objective(of(noise, views)) > best


@pytest.mark.parametrize("objective", [Gram(), Triangle()])
def test_volumes_and_areas_say_nothing_at_perfect_alignment(objective: Objective) -> None:
    """What is printed about these two in their sources holds for a match alone: every volume is 0 there."""
    views = aligned(5, 3, 5)
    torch.testing.assert_close(objective(views), torch.tensor(5.0).double().log(), rtol=1e-12, atol=0)
    apart = torch.nn.functional.normalize(views.values + 0.3 * unit(5, 3, 5), dim=-1)
    assert objective(of(apart, views)) < objective(views)


@for_every_objective
def test_descent_aligns(name: str) -> None:
    """Steps down bring the views of an instance together: up to mirror images where the objective cannot tell them."""
    modalities = 2 if name == "gram" else 4  # more are content with views that depend on each other linearly
    views, objective = make_views(8, modalities, 8, rate=0.0), case(name)
    parameter = torch.nn.Parameter(views.values.clone())
    optimizer = torch.optim.Adam([parameter], lr=0.1)

    def cosines() -> Tensor:
        found = torch.nn.functional.normalize(parameter.detach(), dim=-1)
        pairs = [(found[:, i] * found[:, j]).sum(-1) for i, j in itertools.combinations(range(modalities), 2)]
        return torch.stack(pairs).abs() if name in {"gram", "pmrl"} else torch.stack(pairs)

    before = cosines().mean()
    for _ in range(30):
        optimizer.zero_grad()
        objective(of(torch.nn.functional.normalize(parameter, dim=-1), views)).backward()
        optimizer.step()
    assert cosines().mean() > before + 0.2


@for_every_objective
def test_state_survives_a_round_trip(name: str) -> None:
    objective, other = case(name), case(name)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(0.1)
    other.load_state_dict(objective.state_dict())
    assert torch.equal(objective(make_views()), other(make_views()))


def test_anchors_that_are_given_are_the_targets() -> None:
    views = replace(make_views(), anchors=unit(6, 5, seed=4))
    objective = case("anchor")
    torch.testing.assert_close(objective(views), oracles.to_anchors(views, 0.3), rtol=1e-10, atol=1e-10)
    anchors = views.anchors
    assert anchors is not None
    assert torch.autograd.gradcheck(lambda u: objective(replace(views, anchors=u)), anchors.clone().requires_grad_())


def test_an_anchor_of_nothing_changes_nothing() -> None:
    views, objective = replace(make_views(), anchors=unit(6, 5, seed=4)), case("anchor")
    nothing = torch.arange(6) == 2
    weights = torch.where(nothing[:, None], 0, views.weights)
    assert views.anchors is not None
    expected = gradient(objective, replace(views, weights=weights))
    lost = replace(views, weights=weights, anchors=torch.where(nothing[:, None], float("nan"), views.anchors))
    loss, slope = gradient(objective, lost)
    assert loss == expected[0]
    assert torch.equal(slope, expected[1])


@for_every_objective
def test_gradient_of_the_weights(name: str) -> None:
    """Weights may be learned: between 0 and 1 they have exact gradients, and finite ones at 0."""
    views, objective = make_views(4, 3, 3, seed=5), case(name)
    inside = views.weights.clamp(0.2, 0.8) - 0.01 * torch.arange(12).double().reshape(4, 3)  # no ties
    values = unit(4, 3, 3)
    assert torch.autograd.gradcheck(
        lambda w: objective(Views(values, w, views.observed_mask)), inside.clone().requires_grad_()
    )
    weights = views.weights.clone().requires_grad_()
    objective(replace(views, weights=weights)).backward()
    assert weights.grad is not None
    assert weights.grad.isfinite().all()


def test_combined_reports_its_parts() -> None:
    objective, views = (
        Combined({"pmrl": PMRL(), "gram": Gram()}, {"pmrl": 1.0, "gram": 0.5, "decoder": 2.0}),
        make_views(),
    )
    with pytest.raises(ArgumentError, match="decoder"):
        objective(views)
    parts = objective.parts(views, decoder=torch.tensor(3.0).double())
    assert set(parts) == {"pmrl", "gram", "decoder"}
    assert parts["gram"] == Gram()(views)
    expected = PMRL()(views) + 0.5 * Gram()(views) + 6.0
    torch.testing.assert_close(objective.total(parts), expected)
    torch.testing.assert_close(objective(views, decoder=torch.tensor(3.0).double()), expected)


def test_matching_looks_at_observed_views_only() -> None:
    views, objective = make_views(), case("matching")
    imputed = (views.weights > 0) & ~views.observed_mask
    assert imputed.any()
    _, slope = gradient(objective, views)
    assert (slope[imputed] == 0).all()


@pytest.mark.parametrize("name", ["gram", "triangle", "pmrl"])
def test_single_precision_serves_near_alignment(name: str) -> None:
    """Six views that nearly coincide: squared volumes of 1e-6 and gradients that still have three digits."""
    noise = 0.1 * torch.randn(32, 6, 64, generator=torch.Generator().manual_seed(0)).double()
    center = torch.randn(32, 1, 64, generator=torch.Generator().manual_seed(1)).double()
    views = Views.observed(torch.nn.functional.normalize(center + noise, dim=-1), torch.ones(32, 6).bool())
    loss, slope = gradient(case(name), views)
    rounded, rough = gradient(case(name).float(), Views.observed(views.values.float(), views.observed_mask))
    torch.testing.assert_close(rounded.double(), loss, rtol=1e-4, atol=1e-5)
    assert (rough.double() - slope).norm() < 1e-3 * slope.norm()


def test_learnable_temperature_stays_above_its_bound() -> None:
    objective = Pairwise(0.07, learnable=True)
    views = Views.observed(aligned(5, 3, 5).values.float(), torch.ones(5, 3).bool())
    optimizer = torch.optim.SGD(objective.parameters(), lr=1e9)
    for _ in range(5):  # at perfect alignment, ever colder is ever better
        optimizer.zero_grad()
        objective(views).backward()
        optimizer.step()
    objective(views)
    assert objective.temperature.value == pytest.approx(0.01)


def test_reconstruction_is_the_mean_over_what_was_observed() -> None:
    inputs = {"image": torch.randn(5, 2, 3).double(), "text": torch.randn(5, 4).double()}
    observed = torch.tensor([[1, 0], [1, 1], [0, 1], [1, 0], [0, 0]]).bool()
    inputs["text"][0] = float("nan")
    decoded = {name: torch.randn_like(x).requires_grad_() for name, x in inputs.items()}
    loss = Reconstruction()(decoded, inputs, observed)
    loss.backward()
    expected = torch.stack(
        [(decoded[n] - inputs[n])[observed[:, m]].square().mean() for m, n in enumerate(inputs)]
    ).mean()
    torch.testing.assert_close(loss, expected)
    slope = decoded["text"].grad
    assert slope is not None
    assert (slope[~observed[:, 1]] == 0).all()
    assert (slope[observed[:, 1]] != 0).all()
    assert Reconstruction()(decoded, inputs, torch.zeros(5, 2).bool()) == 0
    large = {"depth": torch.full((4,), 300.0, dtype=torch.float16)}  # one number each; the squares overflow in half
    assert Reconstruction()(large, {"depth": torch.zeros(4)}, torch.ones(4, 1).bool()) == 300**2


@pytest.mark.parametrize("bad", [0.0, -0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("build", [PMRL, Gram, Triangle, Pairwise, AnchorContrast, Matching])
def test_temperatures_that_cannot_be(build: Callable[[float], Objective], bad: float) -> None:
    with pytest.raises(ArgumentError, match="temperature"):
        build(bad)


def test_bad_arguments() -> None:
    with pytest.raises(ArgumentError, match=r"'simclr'.*anchor.*anchored.*gram.*pairwise.*pmrl.*triangle"):
        make_objective("simclr")
    with pytest.raises(ArgumentTypeError, match="temperature"):
        Pairwise("warm")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="learnable"):
        Pairwise(0.001, learnable=True)
    with pytest.raises(SchemaError, match=r"'audio'.*'image', 'text'"):
        Anchored("audio", names=["image", "text"])
    with pytest.raises(ArgumentError, match="names"):
        Anchored("audio")
    with pytest.raises(ArgumentError, match=r"anchor.*4 modalities"):
        Anchored(4)(make_views())
    with pytest.raises(ArgumentError, match="weights"):
        Combined({"gram": Gram()}, {"pmrl": 1.0})
    with pytest.raises(ArgumentError, match="weights"):
        Combined({}, {})
    with pytest.raises(ArgumentTypeError, match="parts"):
        Combined({"gram": Gram}, {"gram": 1.0})  # type: ignore[dict-item]
    views = make_views()
    with pytest.raises(ArgumentError, match=r"weights.*\(6, 4\)"):
        Pairwise()(replace(views, weights=views.weights[:3]))
    with pytest.raises(ArgumentError, match=r"anchors.*\(6, 5\)"):
        Pairwise()(replace(views, anchors=torch.zeros(6, 3)))
    with pytest.raises(ArgumentTypeError, match="views"):
        Pairwise()(views.values)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"reconstructions.*'image'"):
        Reconstruction()({"image": torch.zeros(2, 3)}, {"image": torch.zeros(2, 4)}, torch.ones(2, 1).bool())


def test_made_by_name() -> None:
    objective = make_objective("anchored", anchor="text", names=["image", "text"], temperature=0.1)
    assert isinstance(objective, Anchored)
    assert objective.anchor == 1
    assert "0.1, learnable=False" in repr(objective)
