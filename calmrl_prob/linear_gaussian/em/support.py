"""Latents that serve chosen modalities only: shared and private ones, say.

With S (M, K) boolean, the loadings of modality m are W^m[:, k] = 0 wherever S_mk is false. EM keeps its closed form:
the M-step of a modality is the same least-squares problem on the latents that serve it. Parameter expansion may mix
only latents that serve the same modalities, which keeps the zeros where they are.

Sources: Tucker, An inter-battery method of factor analysis (1958); Bach & Jordan, A probabilistic interpretation of
canonical correlation analysis (2005); Klami, Virtanen & Kaski, Bayesian canonical correlation analysis (2013).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.linear_gaussian.em.expectation import Moments
from calmrl_prob.linear_gaussian.em.parameters import Shape
from calmrl_prob.linear_gaussian.grouping import Grouping


@dataclass(frozen=True)
class Support:
    """Support of the loadings: which latents serve which modality.

    Attributes:
        mask: S, (M, K) bool, True = the modality may load on the latent.
    """

    mask: Tensor

    @classmethod
    def of(cls, support: Tensor, shape: Shape, latent_dim: int) -> Support:
        """The same, checked.

        Raises:
            ArgumentTypeError: not booleans.
            ArgumentError: another shape, a latent that serves nothing, or a modality that no latent serves.
        """
        if not isinstance(support, Tensor) or support.dtype != torch.bool:
            got = f"a tensor of {support.dtype}" if isinstance(support, Tensor) else type(support).__name__
            raise ArgumentTypeError(f"support: expected a tensor of booleans, True = may load on it; got {got}.")
        expected = (len(shape.dims), latent_dim)
        if tuple(support.shape) != expected:
            raise ArgumentError(f"support: expected shape (M, K) = {expected}, got {tuple(support.shape)}.")
        idle = (~support.any(0)).nonzero().flatten().tolist()
        if idle:
            raise ArgumentError(f"support: latent {idle[0]} serves no modality; leave its column out.")
        unserved = (~support.any(1)).nonzero().flatten().tolist()
        if unserved:
            raise ArgumentError(f"support: no latent serves modality '{list(shape.dims)[unserved[0]]}'.")
        return cls(support.to(shape.feature_modality.device))

    def require_zeros(self, loadings: Tensor, shape: Shape) -> None:
        """Refuse stacked loadings (D, K) that load on latents which do not serve them.

        Raises:
            ArgumentError: naming the first such modality and latent.
        """
        outside = (loadings != 0) & ~self.mask[shape.feature_modality]
        if bool(outside.any()):
            feature, latent = outside.nonzero()[0].tolist()
            name = list(shape.dims)[int(shape.feature_modality[feature])]
            raise ArgumentError(f"start: modality '{name}' loads on latent {latent}, which support does not let it.")

    def restrict(self, shape: Shape, grouping: Grouping, moments: Moments) -> Moments:
        """Moments whose M-step has its zeros where they must be.

        With C and b the matrix and right-hand side of a group's least squares and s what serves it, s s^T * C +
        diag(1 - s) and s * b are solved by the solution on the latents that serve it, and 0 on the others.

        Args:
            shape: the stacked layout.
            grouping: the groups of the moments.
            moments: of an E-step; the last of ``latent``, over all rows, stays as it is.
        """
        modality = shape.feature_modality
        served = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)[modality[grouping.first]]
        kept = served[:, :, None] & served[:, None, :]
        latent = moments.latent.clone()
        latent[:-1] = torch.where(kept, latent[:-1], torch.diag_embed((~served).to(latent.dtype)))
        return replace(moments, cross=moments.cross * self.mask[modality], latent=latent)

    @property
    def interchangeable(self) -> Tensor:
        """(K, K) bool, which latents serve the same modalities."""
        return (self.mask[:, :, None] == self.mask[:, None, :]).all(0)

    def groups(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The latents that serve the same modalities, and those modalities, (M,) bool; the most shared come first."""
        serves, group = torch.unique(self.mask.mT, dim=0, return_inverse=True)
        for chosen in torch.argsort(serves.sum(1), descending=True, stable=True).tolist():
            yield (group == chosen).nonzero().squeeze(1), serves[chosen]
