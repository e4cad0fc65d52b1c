"""Captions where training rows lack modalities, by retrieval and by a decoder: ``python -m experiments.caption``.

    python -m experiments.caption                                               # bundled emoji; quick=true for a look
    python -m experiments.caption source=flickr8k data_root=/path/to/files
    python -m experiments.caption source=motion data_root=/path/to/files        # clips of moving emoji
    python -m experiments.caption only=[observed,ridge,calmrl] seeds=[0] missing=[half] decoder_seeds=0

Image rows lose modalities, every contender learns from what is left, and test rows are captioned from every set of
modalities but text: by the nearest training row, by the consensus of the likely ones, and by a decoder that all share.
Settings are chosen on validation rows, as incomplete as training. Leaves ``results.csv``, ``paired.csv``,
``captions.csv`` (all captions of the first seed), ``table.md``, ``config.yaml`` and ``report.html``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from analysis.report import build_report
from analysis.runs.files import write_table, write_text
from calmrl_prob._support.arguments import real_number, whole_number
from calmrl_prob.errors import ArgumentError
from calmrl_prob.evaluation.captions import score_captions
from experiments.alignment.runs import Row, collect
from experiments.captioning.contenders import makers
from experiments.captioning.sources import Captioned, coco, emoji, flickr8k, motion, removed
from experiments.captioning.study import Caption, Study, Trained, attempt
from experiments.captioning.tables import caption_table, examples, paired_table
from experiments.captioning.training import text_alone, trained_decoder
from experiments.harness.command import run_in_folder
from experiments.harness.console import print_table
from experiments.harness.markdown import markdown
from experiments.harness.settings import build

logger = logging.getLogger(__name__)

CAPTION = (
    "CIDEr-D (0 to 10) of captions of the test rows, mean over the sets of given modalities and the seeds ± standard "
    "deviation over seeds; in columns how training rows lack modalities. All learn from the same rows and choose on "
    "the same validation rows; the column none is that of complete data. Differences are of CIDEr-D, with "
    "intervals over resampled test rows."
)
#: (missingness, variant, captioner) -> for each seed and set of modalities the captions.
Found = dict[tuple[str, str, str], list[Caption]]


@hydra.main(config_path="conf", config_name="caption", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Make one table."""
    run_in_folder(run, cfg)


def run(cfg: DictConfig, folder: Path, console: Console | None = None) -> pd.DataFrame:
    """Learn, caption, print the tables, and write the files of the run.

    Returns:
        One row for each missingness, seed, variant, captioner and set of given modalities.
    """
    out = console or Console()
    cfg = _checked(cfg)
    source = _source(cfg)
    found: Found = {}
    decoders = min(cfg.decoder_seeds, len(cfg.seeds))
    passes = decoders * cfg.decoder.epochs * (1 if len(text_alone(source)) else len(cfg.missing))
    steps = len(cfg.seeds) * len(cfg.missing) * len(cfg.only) + passes + bool(source.human)
    results = collect(_steps(cfg, source, found, folder), steps, folder, out)
    paired = _keep(cfg, source, found, folder)
    shown, told = (
        caption_table(results),
        paired.map(lambda cell: f"{cell:.3f}" if isinstance(cell, float) else str(cell)),
    )
    title = (
        f"Captions: {source.name}, {len(source.references)} test rows, {len(cfg.seeds)} seeds, decoder of {decoders}"
    )
    parts = [f"## {title}\n\n{markdown(shown)}", f"{CAPTION}\n"]
    parts += [f"## Paired differences\n\n{markdown(told)}"] * bool(len(paired))
    write_text(OmegaConf.to_yaml(cfg, resolve=True), folder / "config.yaml")
    write_text("\n".join(parts), folder / "table.md")
    print_table(out, shown, title)
    out.print(CAPTION, highlight=False)
    if len(paired):
        print_table(out, told, "Paired differences")
    out.print(f"Report: {build_report(folder)}", soft_wrap=True, highlight=False)
    return results


def _keep(cfg: DictConfig, source: Captioned, found: Found, folder: Path) -> pd.DataFrame:
    """Write what is of all captions so far: paired differences, which are returned, and the first seed's captions."""
    paired = paired_table(found, {key: cfg.variants[key].label for key in cfg.only}, cfg.interval_level)
    write_table(paired, folder / "paired.csv")
    write_table(examples(found, source.references, cfg.seeds[0]), folder / "captions.csv")
    return paired


def _steps(cfg: DictConfig, source: Captioned, found: Found, folder: Path) -> Iterator[tuple[str, list[Row]]]:
    contenders = makers(cfg)
    if source.human:
        scores = score_captions(source.human, source.references)
        yield (
            "human",
            [{"missing": "-", "variant": "human", "label": "human", "captioner": "-", "given": "-"} | scores.corpus],
        )
    for number, seed in enumerate(cfg.seeds):
        trained: Trained | None = None
        for missing in cfg.missing:
            incomplete = removed(source.train, build(cfg, f"missingness.{missing}"), seed)
            study = Study(source, incomplete, cfg.validation_share, cfg.components, seed, cfg.abstain)
            if number < cfg.decoder_seeds and (trained is None or not len(text_alone(source))):
                done: list[str] = []
                trained = trained_decoder(study, cfg.decoder, done.append)
                yield from ((f"{what}, seed {seed}", []) for what in done)
            for key, make in contenders.items():
                what = f"{cfg.variants[key].label}, {missing}, seed {seed}"
                captions = attempt(what, study.run(make, trained))
                for caption in captions:
                    found.setdefault((missing, key, caption.captioner), []).append(caption)
                named = {"missing": missing, "variant": key, "label": cfg.variants[key].label, "seed": seed}
                yield what, [named | _measured(caption) for caption in captions]
            _keep(cfg, source, found, folder)  # an interrupted run leaves what it has


def _measured(caption: Caption) -> dict[str, Any]:
    return {
        "captioner": caption.captioner,
        "given": " + ".join(caption.given),
        **caption.scores.corpus,
        "answered": float(caption.answered.mean()),
        "CIDEr-D, answered": caption.of_answered(),
    }


def _source(cfg: DictConfig) -> Captioned:
    if cfg.source == "coco":
        lacking = [name for name in ("annotations", "features") if cfg.coco[name] is None]
        if lacking:
            raise ArgumentError(f"coco.{lacking[0]}: must be given for source=coco, the path of a file.")
        return coco(**cfg.coco)
    sources = {"emoji": emoji, "flickr8k": lambda: flickr8k(cfg.data_root, cfg.text),
               "motion": lambda: motion(cfg.data_root)}  # fmt: skip
    if cfg.source not in sources:
        raise ArgumentError(f"source: expected one of {[*sources, 'coco']}, got {cfg.source!r}.")
    return sources[cfg.source]()


def _checked(cfg: DictConfig) -> DictConfig:
    """The configuration, cut short where ``quick`` asks for it.

    Raises:
        ArgumentError: an option names what there is not, or is out of range.
        ArgumentTypeError: a number is none.
    """
    known: Mapping[str, list[str]] = {"missing": list(cfg.missingness), "only": list(cfg.variants)}
    for option, names in known.items():
        unknown = [name for name in cfg[option] if name not in names]
        if unknown or not len(cfg[option]):
            raise ArgumentError(f"{option}: expected some of {names}, got {list(cfg[option])}.")
    if not len(cfg.seeds):
        raise ArgumentError("seeds: expected at least one, such as seeds=[0].")
    if not 0 < real_number("validation_share", cfg.validation_share, 0.15) < 1:
        raise ArgumentError(f"validation_share: expected a share between 0 and 1, got {cfg.validation_share}.")
    if not 0 <= real_number("abstain", cfg.abstain, 0.5) < 1:
        raise ArgumentError(f"abstain: expected a share from 0 to below 1, got {cfg.abstain}.")
    whole_number("decoder_seeds", cfg.decoder_seeds)
    whole_number("decoder.draws", cfg.decoder.draws)
    if not cfg.quick:
        return cfg
    short = {"seeds": list(cfg.seeds)[:1], "missing": list(cfg.missing)[:2], "decoder": {"epochs": 1}}
    short["only"] = [key for key in cfg.only if key in ("observed", "ridge", "calmrl_retrieval")] or list(cfg.only)
    short["observed"] = {"temperatures": list(cfg.observed.temperatures)[-1:], "epochs": 15}
    merged = OmegaConf.merge(cfg, short)
    assert isinstance(merged, DictConfig)
    return merged


if __name__ == "__main__":
    main()
