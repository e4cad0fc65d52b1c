"""One EM iteration against its bare matrix products, each in its fastest orientation, in the same run.

An iteration is everything that happens between two points of the trace: E-step, M-step and Anderson's proposal. The
bare products are those that the E-step cannot do without: from the data to the latents and back, and from the latents
to their moments. K x K factorisations are work too, but not products, so they count as overhead here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.clock import paired
from benchmarks.problems import Problem
from calmrl_prob.linear_gaussian import SufficientStatistics
from calmrl_prob.linear_gaussian.blocks import ObservedBlocks
from calmrl_prob.linear_gaussian.em.acceleration import AndersonAccelerator
from calmrl_prob.linear_gaussian.em.expectation import ExpectationStep
from calmrl_prob.linear_gaussian.em.maximization import NoiseModel, maximize
from calmrl_prob.linear_gaussian.em.parameters import Parameters
from calmrl_prob.linear_gaussian.em.rowwise import ModalityStep, PatternStep, RowwiseStep
from calmrl_prob.linear_gaussian.em.statistics import FromStatistics

Product = Callable[[], Tensor]


def orientations(left: Tensor, right: Tensor) -> list[Product]:
    """Ways of asking for left @ right: as it stands, transposed, and with either operand laid out anew beforehand."""
    left_t, right_t = left.mT.contiguous(), right.mT.contiguous()
    return [
        lambda: left @ right,
        lambda: right.mT @ left.mT,
        lambda: right_t @ left.mT,
        lambda: left_t.mT @ right,
        lambda: left_t.mT @ right_t.mT,
    ]


def fastest(left: Tensor, right: Tensor) -> Product:
    """The quickest of them, by trial."""
    ways = orientations(left, right)
    times = paired({str(i): way for i, way in enumerate(ways)}, rounds=3)
    return ways[min(range(len(ways)), key=lambda i: times[str(i)])]


def bare_products(step: ExpectationStep, latent_dim: int) -> list[Product]:
    """The matrix products of one E-step, on operands of the right shapes."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if isinstance(step, FromStatistics):
        products = []
        for scatter in step._scatters:
            weights, small = normal(len(scatter), latent_dim), normal(latent_dim, latent_dim)
            products += [fastest(scatter, weights), fastest(weights.mT, weights), fastest(weights, small)]
        return products
    assert isinstance(step, RowwiseStep)
    if isinstance(step, ModalityStep):
        tall = step._values
    else:
        assert isinstance(step, PatternStep)
        tall = [values for values, _, _ in step._parts]
    forth, back, between = [], [], []  # in the order of an iteration, because it decides what is still in the cache
    for values in tall:
        weights = normal(values.shape[1], latent_dim).to(values.dtype)
        latents = normal(len(values), latent_dim).to(values.dtype)
        forth.append(fastest(values, weights))
        back.append(fastest(values.mT, latents))
    for bucket in step.layout.buckets:
        rows = normal(len(bucket.patterns), bucket.capacity, latent_dim)
        square = normal(len(bucket.patterns), latent_dim, latent_dim)
        between += [fastest(rows, square), fastest(rows.mT, rows)]
    return [*forth, *between, *back]


def iteration(step: ExpectationStep, shift: Tensor, problem: Problem) -> Callable[[], object]:
    """One EM iteration at the true parameters, Anderson's proposal with a full memory included."""
    truth = problem.make().truth
    parameters = Parameters.from_linear_gaussian(truth, shift)
    size = step.shape.total
    noise_model = NoiseModel(True, torch.zeros(size).double(), 0.0, torch.ones(size).double())
    accelerator = AndersonAccelerator()

    def run() -> None:
        moments = step(parameters)
        image = maximize(step, moments, noise_model, expand=True)
        parameters.unflatten(accelerator.propose(parameters.flatten(), image.flatten()))

    for _ in range(12):
        run()
    return run


def forms(blocks: ObservedBlocks, latent_dim: int) -> dict[str, tuple[ExpectationStep, Tensor]]:
    """The three forms of the E-step with their shifts."""
    centred, shift = blocks.centred()
    statistics = SufficientStatistics.from_blocks(blocks)
    return {
        "modality": (ModalityStep(centred, latent_dim), shift),
        "pattern": (PatternStep(centred, latent_dim), shift),
        "statistics": (FromStatistics(statistics), statistics.shift),
    }


def measure(problem: Problem, dtype: torch.dtype = torch.float64) -> list[dict[str, object]]:
    """Milliseconds of an iteration and of its bare products, for each form."""
    data = problem.make().data.to(dtype)
    rows: list[dict[str, object]] = []
    for form, (step, shift) in forms(data.blocks, problem.latent_dim).items():
        with torch.no_grad():
            products = bare_products(step, problem.latent_dim)
            works = {
                "iteration": iteration(step, shift, problem),
                "products": lambda products=products: [product() for product in products],
            }
            times = paired(works)
        rows.append(
            {
                "problem": problem.name,
                "data": str(dtype).removeprefix("torch."),
                "form": form,
                "iteration_ms": 1e3 * times["iteration"],
                "products_ms": 1e3 * times["products"],
                "ratio": times["iteration"] / times["products"],
            }
        )
    return rows
