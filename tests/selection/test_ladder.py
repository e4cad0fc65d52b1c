"""The order in which settings are tried, and what is left out, over landscapes of scores that are known."""

from __future__ import annotations

import math
from collections.abc import Callable

from calmrl_prob.selection.ladder import Freedom, Size, first_setting, walk
from calmrl_prob.selection.scores import Score
from calmrl_prob.selection.search import Search, Tried
from calmrl_prob.selection.settings import Setting

SIZE = Size(2_000, {"a": 200, "b": 200})


class Landscape(Search):
    """A search in which a setting's score is a function of it, so that nothing is fitted."""

    def __init__(self, height: Callable[[Setting], float]) -> None:
        super().__init__(folds=[], seed=0)
        self._height = height

    def try_(self, setting: Setting, reason: str, near: Tried | None = None) -> Tried:
        """Look up."""
        if setting not in self.tried:
            score = Score(self._height(setting), {}, {}, {})
            self.tried[setting] = Tried(setting, score, [score], [], [], 0.0, reason)
        return self.tried[setting]


def walked(height: Callable[[Setting], float]) -> tuple[Setting, list[Setting]]:
    """What is taken, and all that was tried."""
    search = Landscape(height)
    taken = walk(search, first_setting(SIZE, None, "auto"), Freedom(), SIZE)
    return taken.setting, list(search.tried)


def off(setting: Setting, weight: float) -> float:
    """Squared distance, in decades, of the weight from the best one."""
    return (math.log10(max(setting.pseudo_rows, 1e-9) / weight)) ** 2


def test_few_latents_are_not_followed_where_more_gain_much() -> None:
    taken, tried = walked(lambda s: 0.05 * math.log2(s.latent_dim) - 0.1 * off(s, 300.0) - s.ard)
    assert taken.latent_dim == 256
    assert [s.latent_dim for s in tried if s.latent_dim < 64 and not s.ard] == [16]


def test_few_latents_are_followed_to_their_own_weight_where_they_are_close() -> None:
    """8 are best, under a prior ten times as heavy as 64 ask for."""

    def height(s: Setting) -> float:
        best = 3000.0 if s.latent_dim <= 16 else 300.0
        return -0.01 * abs(math.log2(s.latent_dim / 8)) - 0.05 * off(s, best) - s.ard

    taken, _ = walked(height)
    assert taken.latent_dim == 8
    assert 2000 < taken.pseudo_rows < 5000


def test_more_latents_are_not_tried_where_few_are_better() -> None:
    taken, tried = walked(lambda s: -0.05 * math.log2(s.latent_dim) - 0.1 * off(s, 300.0) - s.ard)
    assert taken.latent_dim == 1
    assert max(s.latent_dim for s in tried) == 64


def test_few_latents_far_behind_are_tried_once() -> None:
    _, tried = walked(lambda s: -1.0 * (s.latent_dim < 64) - 0.1 * off(s, 300.0) - s.ard)
    assert sum(s.latent_dim == 16 for s in tried) == 1


def test_relevance_is_left_out_where_its_kind_of_noise_is_far_behind() -> None:
    for gap, tried_at_all in ((0.2, False), (0.05, True)):
        _, tried = walked(lambda s, gap=gap: gap * (s.noise == "full") - 0.1 * off(s, 300.0))  # type: ignore[misc]
        assert any(s.ard for s in tried) == tried_at_all


def test_the_weight_goes_down_first_with_correlated_noise() -> None:
    def height(s: Setting) -> float:
        return -0.1 * off(s, 30.0 if s.noise == "full" else 3000.0) + 0.3 * (s.noise == "full") - s.ard

    taken, tried = walked(height)
    weights = [s.pseudo_rows for s in tried if s.noise == "full" and s.latent_dim == 64]
    assert weights[1] < weights[0]
    assert 15 < taken.pseudo_rows < 60
    assert max(weights) == weights[0]  # and not up, since down was better
