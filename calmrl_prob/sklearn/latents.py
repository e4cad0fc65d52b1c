"""LatentTransformer: a table with missing values turned into the latents that all its modalities share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from calmrl_prob.inference.posterior import posterior
from calmrl_prob.linear_gaussian import NoiseForm
from calmrl_prob.posteriors.gaussian import GaussianPosterior
from calmrl_prob.posteriors.posterior import PosteriorResult
from calmrl_prob.sklearn.base import Modalities, TableModel, Values


class LatentTransformer(TableModel):
    """A table replaced by the posterior means of the latents z of its rows, (N, K), whatever values they lack.

    A scikit-learn transformer, fitted as :class:`calmrl_prob.sklearn.CalibratedImputer` is, whose parameters and
    attributes it has. Rows are comparable whichever modalities they have, so that a classifier trained on complete rows
    serves rows that lack some. The axes of z are those of one fit: another fit may have them rotated.

    Args:
        modalities, latent_dim, noise, shrinkage, budget, options, random_state: as there.
        with_sd: whether the posterior standard deviations follow, K columns more: what lacks much is near 0, the
            mean of the prior, and has standard deviations near 1.

    Example:
        >>> import numpy as np
        >>> generator = np.random.default_rng(0)
        >>> X = generator.normal(size=(200, 2)) @ generator.normal(size=(2, 9)) + 0.1 * generator.normal(size=(200, 9))
        >>> X[:60, 5:] = np.nan
        >>> transformer = LatentTransformer({"image": slice(0, 5), "text": slice(5, 9)}, latent_dim=2, with_sd=True)
        >>> transformer.fit_transform(X).shape, transformer.get_feature_names_out().tolist()
        ((200, 4), ['latent0', 'latent1', 'latent0_sd', 'latent1_sd'])
    """

    def __init__(
        self,
        modalities: Modalities = None,
        *,
        latent_dim: int | None = None,
        noise: NoiseForm | Literal["auto"] = "auto",
        shrinkage: Literal["auto", "held-out"] | None = "auto",
        budget: float | None = None,
        options: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
        with_sd: bool = False,
    ) -> None:
        super().__init__(
            modalities,
            latent_dim=latent_dim,
            noise=noise,
            shrinkage=shrinkage,
            budget=budget,
            options=options,
            random_state=random_state,
        )
        self.with_sd = with_sd

    def transform(self, X: ArrayLike) -> Values:
        """Posterior means of the latents, (N, K), and their standard deviations if asked for, (N, 2 K).

        A row without any value gets those of the prior.

        Raises:
            DataError: other columns than those fitted to, or infinities.
        """
        values = self._checked(X)
        found = self._posterior(X, values)
        parts = [found.mean, _standard_deviations(found)] if self.with_sd else [found.mean]
        out: Values = torch.cat(parts, dim=1).numpy(force=True).astype(values.dtype, copy=False)
        return out

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """The log evidence log p(x_n) of what each row has, (N,), nats; 0 of a row without any value."""
        found = self._posterior(X, self._checked(X)).log_marginal
        return found.double().numpy(force=True)

    def score(self, X: ArrayLike, y: object = None) -> float:
        """The mean log evidence of the rows, nats, as of scikit-learn's ``PCA`` and ``FactorAnalysis``.

        It tells how well the model describes the table, not how well it imputes: that is
        ``CalibratedImputer.score``.
        """
        del y
        return float(self.score_samples(X).mean())

    def _posterior(self, X: object, values: Values) -> PosteriorResult:
        return posterior(self.result_, self._data(X, values))

    @property
    def _n_features_out(self) -> int:
        return int(self.result_.model.latent_dim) * (2 if self.with_sd else 1)

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> NDArray[Any]:
        """The names latent0, latent1 ..., and latent0_sd ... where they are asked for; input names do not matter."""
        del input_features
        check_is_fitted(self)
        names = [f"latent{k}" for k in range(self.result_.model.latent_dim)]
        return np.array(names + [f"{name}_sd" for name in names] * self.with_sd, dtype=object)


def _standard_deviations(found: PosteriorResult) -> torch.Tensor:
    """Posterior standard deviations of the latents, (N, K)."""
    if isinstance(found, GaussianPosterior):  # by pattern: (N, K, K) may not fit
        return found.pattern_covariance.diagonal(dim1=1, dim2=2).sqrt()[found.pattern_index]
    return found.covariance.diagonal(dim1=1, dim2=2).sqrt()
