"""Parameters of a model's noise: how many it has for each form, what they say, and how others' noise is taken over.

    isotropic   log_noise ()                              Psi = exp(log_noise) I
    diagonal    log_noise (D,)                            Psi = diag(exp(log_noise))
    low_rank    log_noise (D,), noise_factor (D, R)       Psi = diag(exp(log_noise)) + B B^T
    full        log_noise (D,), noise_factor (D, D)       the same: any covariance can be written so

so that every real number is a legal value of every parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian import NOISES, LinearGaussian, NoiseForm, checked_ranks


@dataclass(frozen=True)
class NoiseParameters:
    """Form of the noise of a model.

    Attributes:
        form: "isotropic", "diagonal", "full" or "low_rank".
        ranks: number of columns of ``noise_factor`` of each modality; None where noise is not correlated.

    Example:
        >>> NoiseParameters.of("low_rank", None, {"image": 12, "text": 4}, latent_dim=3).ranks
        {'image': 3, 'text': 1}
    """

    form: NoiseForm
    ranks: Mapping[str, int] | None

    @classmethod
    def of(
        cls, form: NoiseForm, rank: int | Mapping[str, int] | None, dims: Mapping[str, int], latent_dim: int
    ) -> NoiseParameters:
        """The form that a user asked for.

        Raises:
            ArgumentError: there is no such form, or the rank does not go with it.
        """
        if form not in NOISES:
            raise ArgumentError(f"noise: expected one of {list(NOISES)}, got {form!r}.")
        if rank is not None and form != "low_rank":
            raise ArgumentError(f"noise_rank: it belongs to noise='low_rank', but that is {form!r}; leave it out.")
        if form == "low_rank":
            return cls(form, dict(zip(dims, checked_ranks(rank, dims, latent_dim), strict=True)))
        return cls(form, dict(dims) if form == "full" else None)

    def log_shape(self, width: int) -> tuple[int, ...]:
        """Of ``log_noise``, for a modality of D features."""
        return () if self.form == "isotropic" else (width,)

    def own(self, linear_gaussian: LinearGaussian) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Another model's noise in this form: for each modality exp(log_noise) and noise_factor.

        Raises:
            ArgumentError: this form cannot say it.
        """
        return {name: self._own(linear_gaussian, name) for name in linear_gaussian.names}

    def _own(self, lg: LinearGaussian, name: str) -> tuple[Tensor, Tensor | None]:
        variance, correlated = lg.noise_variance[name], lg.correlated_noise(name)
        if self.ranks is None:
            if correlated is not None:
                raise ArgumentError(
                    f"linear_gaussian: the noise of modality {name!r} is correlated between features, but this "
                    f"model's is {self.form}; make a model with noise='full', or 'low_rank'."
                )
            if self.form == "isotropic" and bool((variance != variance[0]).any()):
                raise ArgumentError(
                    f"linear_gaussian: the noise variances of modality {name!r} differ by feature, but this model's "
                    "are isotropic; make a model with noise='diagonal'."
                )
            return (variance if self.form == "diagonal" else variance[0]), None
        factor = variance.new_zeros(len(variance), self.ranks[name])
        if correlated is None:
            return variance, factor
        rank = correlated.factor.shape[1]
        if rank > factor.shape[1]:
            raise ArgumentError(
                f"linear_gaussian: the noise of modality {name!r} has rank {rank}, but this model's has "
                f"{factor.shape[1]}; make a model with noise_rank={rank}, or noise='full'."
            )
        factor[:, :rank] = correlated.factor
        return correlated.specific, factor


def with_noise(form: LinearGaussian, factors: Mapping[str, Tensor] | None) -> LinearGaussian:
    """A form whose ``noise_variance`` is exp(log_noise), with noise factors added; differentiable in all of them."""
    if factors is None:
        return form
    variance = {name: value + factors[name].square().sum(1) for name, value in form.noise_variance.items()}
    return replace(form, noise_variance=variance, noise_factor=factors)


def parameter_key(kind: str, name: str) -> str:
    """The name of a modality's parameter in a model: torch allows no dots in it, modality names may have some.

    Example:
        >>> parameter_key("loadings", "text.title")
        'loadings/text%2Etitle'
    """
    return f"{kind}/{name.replace('%', '%25').replace('.', '%2E')}"
