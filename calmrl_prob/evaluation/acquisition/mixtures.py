"""Expected gains under posteriors that are mixtures of Gaussians with one likelihood, by draws in K dimensions.

With z_n | x_Omega ~ sum_c w_c N(P_c^-1 h_c, P_c^-1), x^m says of z what t = W^mT Psi^m^-1 (x^m - mu^m) says, which
given z is N(A z, A), A = W^mT Psi^m^-1 W^m; and

    log p(x^m | z) - log p(x^m | x_Omega) = t^T z - 1/2 z^T A z - L(t, A)
    L(t, A) = logsumexp_c (log w_c + 1/2 (logdet P_c - logdet(P_c + A))
                           + 1/2 ((h_c + t)^T (P_c + A)^-1 (h_c + t) - h_c^T P_c^-1 h_c))

whose mean over draws of (z, t) is I(z; x^m | x_Omega), without bias. About a target with its own t',
I(x'; x^m | x_Omega) is the mean of L(t + t', A + A') - L(t, A) - L(t', A').

Most of it is known: under one Gaussian with the mean and covariance of the mixture all these are quadratic in (z, t),
so that their means over the mixture's draws are the Gaussian's closed forms. Only what is beyond them is drawn: a
control variate, which leaves nothing to chance as the mixture nears a Gaussian.

Source: Owen, Monte Carlo theory, methods and examples (2013), section 8.9, for control variates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.evaluation.acquisition.closed_forms import added_precision, pattern_precisions, trace_after
from calmrl_prob.evaluation.acquisition.question import Gains, Question
from calmrl_prob.inference.exact.scale_mixture import ScaleMixtureResult
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.linear_gaussian.blocks import find_patterns
from calmrl_prob.linear_gaussian.posterior import factorize
from calmrl_prob.linear_gaussian.unseen import information_gain, unseen_features, unseen_products
from calmrl_prob.posteriors.mixture import MixtureResult

#: Numbers that the draws of a chunk of instances, or their precisions, may hold.
_CHUNK_BUDGET = 2**22


@dataclass(frozen=True)
class LatentMixtures:
    """The posteriors of n instances that have the same features, each a mixture of C Gaussians.

    Attributes:
        rows: the instances, (n,) int64.
        log_weight: (n, C), normalised over C.
        natural: h, (n, C, K).
        precision: P, (n, C, K, K), or (1, C, K, K) where instances share it.
    """

    rows: Tensor
    log_weight: Tensor
    natural: Tensor
    precision: Tensor

    def chosen(self, members: Tensor) -> LatentMixtures:
        """Some of the instances."""
        shared = len(self.precision) == 1
        precision = self.precision if shared else self.precision[members]
        return LatentMixtures(self.rows[members], self.log_weight[members], self.natural[members], precision)

    def after(self, added: Tensor, natural: Tensor) -> tuple[Tensor, Tensor]:
        """L(t, A) and E[z | x_Omega, t] at ``natural`` t (n, S, K) and ``added`` A (K, K): (n, S) and (n, S, K)."""
        before, after = factorize(self.precision), factorize(self.precision + added)
        shift = (self.natural[:, None] + natural[:, :, None]).permute(0, 2, 3, 1)  # (n, C, K, S)
        half = torch.linalg.solve_triangular(after.expand(len(shift), -1, -1, -1), shift, upper=False)
        start = torch.linalg.solve_triangular(
            before.expand(len(shift), -1, -1, -1), self.natural[..., None], upper=False
        )
        logdet = (after.diagonal(dim1=-2, dim2=-1).log() - before.diagonal(dim1=-2, dim2=-1).log()).sum(-1)
        quadratic = half.square().sum(2) - start.square().sum(2)
        terms = self.log_weight[:, :, None] + 0.5 * quadratic - logdet[:, :, None]
        means = torch.linalg.solve_triangular(after.mT.expand(len(shift), -1, -1, -1), half, upper=True)
        return terms.logsumexp(1), torch.einsum("ncs,ncks->nsk", terms.softmax(1), means)

    def matched(self) -> LatentMixtures:
        """One Gaussian for each instance, with the mean and covariance of its mixture; C = 1."""
        factor = factorize(self.precision).expand(len(self.rows), -1, -1, -1)
        means = torch.cholesky_solve(self.natural[..., None], factor)[..., 0]
        weight = self.log_weight.exp()
        mean = torch.einsum("nc,nck->nk", weight, means)
        apart = means - mean[:, None]
        inner = torch.cholesky_inverse(factor) + apart[..., :, None] * apart[..., None, :]
        precision = torch.cholesky_inverse(factorize(torch.einsum("nc,nckl->nkl", weight, inner)))
        natural = (precision @ mean[..., None])[..., 0]
        nothing = torch.zeros_like(self.log_weight[:, :1])
        return LatentMixtures(self.rows, nothing, natural[:, None], precision[:, None])

    def sample(self, num_draws: int, generator: torch.Generator) -> Tensor:
        """Draws of z, (n, S, K)."""
        labels = torch.multinomial(self.log_weight.exp(), num_draws, replacement=True, generator=generator)
        factor = factorize(self.precision).expand(len(self.rows), -1, -1, -1)
        noise = _normal(self.natural, (*self.natural.shape, num_draws), generator)
        start = torch.linalg.solve_triangular(factor, self.natural[..., None], upper=False)
        every = torch.linalg.solve_triangular(factor.mT, start + noise, upper=True).permute(0, 3, 1, 2)
        places = labels[:, :, None, None].expand(-1, -1, 1, every.shape[3])
        chosen: Tensor = every.gather(2, places).squeeze(2)
        return chosen


def mixture_gains(given: MixtureResult, question: Question) -> Gains:
    """Gains under a mixture of Gaussians whose components share loadings and noise."""
    lg = given.mixture.components[0].detach().to(torch.float64)
    return _by_draws(lg, _of_mixture(given), question, given.latent_dim)


def scale_mixture_gains(given: ScaleMixtureResult, question: Question) -> Gains:
    """Gains where one scale of the prior is integrated out: a mixture over the nodes of its quadrature."""
    lg = given.exact.model.linear_gaussian.detach().to(torch.float64)
    return _by_draws(lg, _of_nodes(given, question), question, lg.latent_dim)


def _of_mixture(given: MixtureResult) -> Iterator[LatentMixtures]:
    """Pattern by pattern."""
    parts = given.exact.components
    models = [part.linear_gaussian.detach().to(torch.float64) for part in parts]
    weight = given.exact.log_responsibilities.double()
    for p in range(len(parts[0].patterns)):
        rows = (parts[0].pattern_index == p).nonzero().squeeze(1)
        chosen = slice(p, p + 1)
        found = [pattern_precisions(part, lg, chosen) for part, lg in zip(parts, models, strict=True)]
        natural = torch.stack([part.natural_mean[rows] for part in parts], dim=1).double()
        yield LatentMixtures(rows, weight[rows], natural, torch.stack(found, dim=1))


def _of_nodes(given: ScaleMixtureResult, question: Question) -> Iterator[LatentMixtures]:
    """Chunk by chunk of the quadrature, pattern by pattern."""
    _, index, _ = find_patterns(question.present)
    for chunk, log_weight, natural, precision in given.components(_CHUNK_BUDGET):
        rows = torch.arange(chunk.start, chunk.stop, device=index.device)
        whole = LatentMixtures(rows, log_weight.double(), natural.double(), precision.double())
        for p in index[rows].unique().tolist():
            yield whole.chosen((index[rows] == p).nonzero().squeeze(1))


def _by_draws(lg: LinearGaussian, mixtures: Iterator[LatentMixtures], question: Question, latent_dim: int) -> Gains:
    gains = Gains.empty(question, "draws")
    generator = torch.Generator(device=lg.device).manual_seed(question.seed)
    for mixture in mixtures:
        _, count, latents = mixture.natural.shape
        step = max(1, _CHUNK_BUDGET // (count * latents * max(latents, question.num_draws)))
        for members in torch.arange(len(mixture.rows), device=lg.device).split(step):
            _enter(gains, lg, mixture.chosen(members), question, latent_dim, generator)
    return gains


def _enter(
    gains: Gains,
    lg: LinearGaussian,
    mixture: LatentMixtures,
    question: Question,
    latent_dim: int,
    generator: torch.Generator,
) -> None:
    """The gains of instances of one pattern, all from the same draws of the latents."""
    part, pattern = question.of(mixture.rows), question.present[mixture.rows[:1]]
    z = mixture.sample(question.num_draws, generator)
    two = _Beside(mixture, mixture.matched())
    target = None
    if question.target is not None:
        target = _Target.of(lg, pattern, two, z, question.target, generator)
    for column, name in enumerate(question.names):
        if not len(part.rows(name)):  # of one pattern all are asked, or none
            continue
        added = added_precision(lg, pattern, name)[0]
        t = _statistic(added, z, generator)
        excess, means = two.excess(added, t)
        known, drop = two.information(added), None
        if target is None:
            others = mixture.precision[0, 0], added
            known = known - (information_gain(*others) - information_gain(*others, latent_dim))
            terms = known[:, None] - excess
        else:
            both = added + target.added
            known = known + two.information(target.added) - two.information(both)
            terms = known[:, None] + two.excess(both, t + target.statistic)[0] - excess - target.excess
            drop = two.drop(added, means, target.squares)
        gains.put(mixture.rows, column, terms, drop)


@dataclass(frozen=True)
class _Beside:
    """Mixtures beside the Gaussians with their moments.

    Attributes:
        mixture, gaussian: both of the same instances.
    """

    mixture: LatentMixtures
    gaussian: LatentMixtures

    def excess(self, added: Tensor, natural: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """L of the mixture less that of the Gaussian, (n, S), and the two means of z given t, (n, S, K) each."""
        own, mean = self.mixture.after(added, natural)
        other, plain = self.gaussian.after(added, natural)
        return own - other, (mean, plain)

    def information(self, added: Tensor) -> Tensor:
        """The Gaussian's, (n,)."""
        return information_gain(self.gaussian.precision[:, 0], added)

    def drop(self, added: Tensor, means: tuple[Tensor, Tensor], squares: Tensor) -> Tensor:
        """(E[z | t] - E[z])^T W^T W (E[z | t] - E[z]), with the Gaussian as control variate; (n, S)."""
        precision = self.gaussian.precision[:, 0]
        centre = torch.cholesky_solve(self.gaussian.natural[:, 0, :, None], factorize(precision))[..., 0]
        own, plain = (((mean - centre[:, None]) @ squares * (mean - centre[:, None])).sum(2) for mean in means)
        return (trace_after(precision, squares) - trace_after(precision + added, squares))[:, None] + own - plain


@dataclass(frozen=True)
class _Target:
    """Draws of a target, and what they tell.

    Attributes:
        added, squares: A' and W^T W, (K, K), of the features that are missing.
        statistic: t', (n, S, K).
        excess: of t', (n, S).
    """

    added: Tensor
    squares: Tensor
    statistic: Tensor
    excess: Tensor

    @classmethod
    def of(
        cls, lg: LinearGaussian, pattern: Tensor, two: _Beside, z: Tensor, name: str, generator: torch.Generator
    ) -> _Target:
        """Drawn given the latents z, (n, S, K)."""
        loadings, unseen = lg.loadings[name], unseen_features(lg, pattern, name)
        added = added_precision(lg, pattern, name)[0]
        squares = unseen_products(loadings, torch.ones_like(loadings[:, 0]), unseen)[0]
        statistic = _statistic(added, z, generator)
        return cls(added, squares, statistic, two.excess(added, statistic)[0])


def _statistic(added: Tensor, z: Tensor, generator: torch.Generator) -> Tensor:
    """Draws of t given z: N(A z, A)."""
    values, vectors = torch.linalg.eigh(added)
    root = vectors * values.clamp(min=0).sqrt()
    drawn: Tensor = z @ added + _normal(z, tuple(z.shape), generator) @ root.mT
    return drawn


def _normal(like: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=like.dtype, device=like.device)
