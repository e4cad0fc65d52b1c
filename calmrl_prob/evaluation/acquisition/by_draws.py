"""Expected gains of any posterior that can be drawn from, by draws of what would be observed.

With S joint draws (z_s, x_s) given x_Omega, and the modality's density p(x | z) at all pairs of them,

    I(z; x^m | x_Omega) ~ 1/S sum_s ( log p(x_s^m | z_s) - log 1/S sum_r p(x_s^m | z_r) )
    I(x^t; x^m | x_Omega) ~ 1/S sum_s ( L_s(x^m, x^t) - L_s(x^m) - L_s(x^t) ),   L_s(x) = log 1/S sum_r p(x_s | z_r)

which is never above log S, whatever the truth, and on average below it: a gain near log S needs more draws.

Source: van den Oord, Li & Vinyals, Representation learning with contrastive predictive coding (2018), for the bound;
Poole et al., On variational bounds of mutual information (2019), for the form with known p(x | z).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.errors import ArgumentError
from calmrl_prob.evaluation.acquisition.question import Gains, Question
from calmrl_prob.inference.exact.scale_mixture import SampledScaleMixture, ScaleMixtureResult
from calmrl_prob.posteriors.posterior import PosteriorResult

#: Numbers that all draws of one modality may hold, and those worked on at once.
_DRAWS_BUDGET, _CHUNK_BUDGET = 2**28, 2**22
#: Nats below log S from which on an estimate is as good as at its limit.
_NEAR_LIMIT = 1.0


def drawn_gains(given: PosteriorResult, question: Question) -> Gains:
    """Gains by the posterior's own draws.

    Raises:
        ArgumentError: its draws do not fit into memory, or a Student-t modality lacks single features.
    """
    gains = Gains.empty(question, "draws")
    freedom = _student_t(given)
    partly = question.present.shape[1] != len(question.names)
    if partly:
        raise ArgumentError(
            f"data: some instances lack single features, for which route {given.route!r} has no value of information; "
            "leave these modalities out of these instances (MultimodalData.mask), or use a model with a closed form."
        )
    for column, name in enumerate(question.names):
        rows = question.rows(name)
        if not len(rows):
            continue
        # one call for both: the target is to be of the same latents
        names = [name] if question.target is None else [name, question.target]
        drawn, *rest = _drawn(given, question, names, freedom)
        width = sum(given.dims[part] for part in names)
        for members in rows.split(max(1, _CHUNK_BUDGET // (question.num_draws * max(width, question.num_draws)))):
            own, drop = drawn.log_density(members), None
            if not rest:
                terms = own.diagonal(dim1=1, dim2=2) - _log_mean(own)
            else:
                (target,) = rest
                other = target.log_density(members)
                terms = _log_mean(own + other) - _log_mean(own) - _log_mean(other)
                location = target.location[:, members].transpose(0, 1)
                mean = own.softmax(2) @ location
                drop = (mean - location.mean(1, keepdim=True)).square().sum(2)
            gains.put(members, column, terms, drop)
            gains.capped[members, column] = terms.mean(1) > math.log(question.num_draws) - _NEAR_LIMIT
    return gains


@dataclass(frozen=True)
class _Drawn:
    """S draws of one modality.

    Attributes:
        values, location: x_s and E[x | z_s], (S, N, D).
        variance: of x given z_s, (S, N, D); of Student-t noise the scale.
        freedom: degrees of freedom of the noise, () or (D,); None if it is normal.
        pairs: log p(x_s | z_r) of a site that is no normal, (N, S, S); None of others, which are computed when needed.
    """

    values: Tensor
    location: Tensor
    variance: Tensor
    freedom: Tensor | None = None
    pairs: Tensor | None = None

    def log_density(self, rows: Tensor) -> Tensor:
        """log p(x_s | z_r) of some instances, (n, S, S), up to what depends on neither."""
        if self.pairs is not None:
            return self.pairs[rows]
        values, location, variance = (
            part[:, rows].transpose(0, 1) for part in (self.values, self.location, self.variance)
        )
        if self.freedom is None or self.freedom.ndim == 0:
            # about the mean, so that squares written out lose nothing
            centre = location.mean(1, keepdim=True)
            values, location, weight = values - centre, location - centre, 1 / variance
            squares = values.square() @ weight.mT - 2 * values @ (weight * location).mT
            squares = squares + (weight * location.square()).sum(2)[:, None]
            constant = -0.5 * variance.log().sum(2)[:, None]
            if self.freedom is None:
                return constant - 0.5 * squares
            return constant - 0.5 * (self.freedom + values.shape[2]) * torch.log1p(squares / self.freedom)
        out = torch.empty(*values.shape[:2], values.shape[1], dtype=values.dtype, device=values.device)
        for r in range(values.shape[1]):
            distance = (values - location[:, r : r + 1]).square() / variance[:, r : r + 1]
            terms = (
                -0.5 * (self.freedom + 1) * torch.log1p(distance / self.freedom) - 0.5 * variance[:, r : r + 1].log()
            )
            out[:, :, r] = terms.sum(2)
        return out


def _drawn(
    given: PosteriorResult, question: Question, names: Sequence[str], freedom: Mapping[str, Tensor]
) -> list[_Drawn]:
    """Joint draws of some modalities."""
    size = question.num_draws * len(question.lacking) * sum(given.dims[name] for name in names)
    _require_room(size, question, names)
    generator = torch.Generator(device=given.mean.device).manual_seed(question.seed)
    draws = list(given.draws(question.num_draws, generator, names))
    found = []
    for name in names:
        location = torch.stack([draw.location[name] for draw in draws]).double()
        sites = [draw.sites[name] for draw in draws if name in draw.sites]
        if sites:
            _require_room(question.num_draws**2 * len(question.lacking), question, [name])  # densities of all pairs
            seeds = torch.randint(2**31, (len(sites),), generator=generator, device=location.device)
            values = torch.cat([site.sample(int(own)) for site, own in zip(sites, seeds, strict=True)]).double()
            pairs = torch.stack([site.joint_log_density(values) for site in sites], dim=2).movedim(1, 0)
            found.append(_Drawn(values, location, location, pairs=pairs))
            continue
        noise = torch.stack([draw.noise_variance[name].expand(draw.location[name].shape) for draw in draws]).double()
        deviation = torch.randn(location.shape, generator=generator, dtype=location.dtype, device=location.device)
        values = location + noise.sqrt() * deviation
        if name in freedom:
            noise = given_scale(given, name).double().expand(location.shape)
        found.append(_Drawn(values, location, noise, freedom[name].double() if name in freedom else None))
    return found


def _require_room(size: int, question: Question, names: Sequence[str]) -> None:
    if size > _DRAWS_BUDGET:
        raise ArgumentError(
            f"data: {question.num_draws} draws of {names} for {len(question.lacking)} instances are {size:.1e} "
            "numbers, too many to hold at once; ask about data.subset(rows), or lower num_draws."
        )


def given_scale(given: PosteriorResult, name: str) -> Tensor:
    """The scale (D,) of a modality's Student-t noise, squared units."""
    assert isinstance(given, ScaleMixtureResult | SampledScaleMixture)
    return given.scale_mixture.linear_gaussian.noise_variance[name].detach()


def _student_t(given: PosteriorResult) -> Mapping[str, Tensor]:
    """The degrees of freedom of the modalities whose noise is Student-t."""
    if isinstance(given, ScaleMixtureResult | SampledScaleMixture):
        return given.scale_mixture.degrees_of_freedom
    return {}


def _log_mean(log_density: Tensor) -> Tensor:
    """log 1/S sum_r exp, (n, S)."""
    return log_density.logsumexp(2) - math.log(log_density.shape[2])
