"""``experiments.align_raw`` from end to end on a few small scenes."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from rich.console import Console

from calmrl_prob.datasets.scenes import VOCABULARY
from calmrl_prob.errors import ArgumentError
from experiments.align_raw import run

CONF = Path(__file__).resolve().parents[2] / "experiments" / "conf"
TINY = [
    "data.num_instances=120", "data.image_size=8", "num_test=30", "seeds=[0]", "latent_dim=4", "width=6",
    "components=8", "pseudo_rows=[10]", "training.max_epochs=2", "training.batch_size=32",
    "++encoders.image.channels=[4]", "++encoders.tone.channels=[8]", "++encoders.caption.width=8",
]  # fmt: skip


def config(*overrides: str) -> object:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("align_raw", [*TINY, *overrides])


def test_every_variant_trains_raw_encoders_and_gives_a_row(tmp_path: Path) -> None:
    cfg = config("variants.warm_mean.training.warmup_epochs=1", "variants.warm.training.warmup_epochs=1")
    results = run(cfg, tmp_path, Console(quiet=True)).set_index("variant")  # type: ignore[arg-type]
    assert results.index.tolist() == list(cfg.variants)  # type: ignore[attr-defined]
    assert bool(results["R@1 ratio"].between(0, 100).all())
    assert bool(results.drop("no_encoder")["R@1 cosine"].between(0, 100).all())
    assert results.loc["imputed_mean", "EM share"] > results.loc["observed", "EM share"] == 0
    assert pd.read_csv(tmp_path / "results.csv")["variant"].tolist() == results.index.tolist()
    assert "imputed means (paper)" in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_the_configured_vocabulary_is_that_of_the_captions() -> None:
    assert config().encoders.caption.num_tokens == len(VOCABULARY)  # type: ignore[attr-defined]


def test_what_cannot_work_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="num_test: expected from 2 to 119, got 120"):
        run(config("num_test=120"), tmp_path, Console(quiet=True))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"encoders.image: channels"):
        run(config("encoders.image.channels=[0]"), tmp_path, Console(quiet=True))  # type: ignore[arg-type]
