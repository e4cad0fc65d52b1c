"""All experiments on claims of the paper, then one page of what was found of each: ``python -m experiments.paper``.

    python -m experiments.paper                                   # quick: two seeds, few epochs, bundled data
    python -m experiments.paper quick=false                       # five seeds, all variants (hours)
    python -m experiments.paper only=[align,missing] 'overrides=["data=leaves"]'
    python -m experiments.paper data_root=/path/to/files          # captions, classes, motion and medicine on files too
    python -m experiments.paper control=unrelated.npz             # and a set whose modalities share nothing
    python -m experiments.paper hydra.run.dir=FOLDER              # go on with a run that was interrupted

Every part is a command of its own, in a folder of its own beneath that of the run. One that fails is reported and the
others go on; one that is finished with the same settings is not run again. ``report.html`` shows what there is, and
says what is lacking; ``python -m analysis.alignment_report FOLDER`` makes it anew.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape

from analysis.alignment_report import FACTS, build_alignment_report
from analysis.runs.files import read_facts, write_text
from calmrl_prob.errors import ArgumentError
from experiments.harness.refusal import plain_refusals

logger = logging.getLogger(__name__)


@hydra.main(config_path="conf", config_name="paper", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Run the parts and make the page; exit with 1 if one failed."""
    with plain_refusals():
        failed = run(cfg, Path(HydraConfig.get().runtime.output_dir))
    if failed:  # and not at all otherwise: who exits is not recorded as finished
        sys.exit(1)


def run(cfg: DictConfig, folder: Path, console: Console | None = None) -> list[str]:
    """Run the parts that are wanted, and write ``report.html`` after each.

    Hydra must be initialised, as it is within ``hydra.main``.

    Args:
        cfg: the composed configuration ``paper``.
        folder: where the folders of the parts go, and the page.
        console: to print to; standard output by default.

    Returns:
        The names of the parts that failed.

    Raises:
        ArgumentError: ``only`` names a part that there is not.
        KeyboardInterrupt: the page has what was finished until then.
    """
    out = console or Console()
    facts = _facts(cfg, folder)
    wanted = [name for name in _wanted(cfg) if facts["parts"][name]["overrides"] is not None]
    write_text(json.dumps(facts, indent=2), folder / FACTS)
    failed = []
    try:
        for number, name in enumerate(wanted, 1):
            part = facts["parts"][name]
            out.print(f"[bold]{number}/{len(wanted)}[/bold] {escape(part['title'])}", highlight=False)
            try:
                _run_part(part, folder / name, out)
            except Exception as error:  # whatever breaks one part, the others are worth having
                logger.exception("%s failed", name)
                part["error"] = f"{type(error).__name__}: {error}"
                failed.append(name)
                out.print(f"[bold red]error:[/bold red] {escape(part['error'])}", soft_wrap=True, highlight=False)
            write_text(json.dumps(facts, indent=2), folder / FACTS)
            build_alignment_report(folder)
    finally:
        out.print(f"Report: {build_alignment_report(folder)}", soft_wrap=True, highlight=False)
    return failed


def _run_part(part: dict[str, Any], folder: Path, out: Console) -> None:
    cfg = compose(part["config"], overrides=part["overrides"])
    stored, table = folder / "config.yaml", folder / "table.md"
    same = stored.is_file() and stored.read_text(encoding="utf-8") == OmegaConf.to_yaml(cfg, resolve=True)
    if same and table.is_file():
        out.print("finished before, with the same settings")
        return
    table.unlink(missing_ok=True)  # it would say that this run is finished
    part["error"] = None
    started = time.perf_counter()
    module: Callable[..., Any] = importlib.import_module(part["module"]).run
    module(cfg, folder, out)
    part["seconds"] = time.perf_counter() - started


def _facts(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Facts of each part: title, module, configuration, overrides (null: not a part of this run), seconds, error."""
    path = folder / FACTS
    before = read_facts(path)["parts"] if path.is_file() else {}
    size = "quick" if cfg.quick else "full"
    parts = {}
    for name, part in cfg.parts.items():
        own = part.get(size)
        aligns, files = part.get("aligns", True), part.get("with_files")
        shared = [*cfg.common[size]] * aligns
        read = [f"data_root={os.path.abspath(cfg.data_root)}", *files] if files is not None and cfg.data_root else []
        overrides = None if own is None else last_of_each([*shared, *read, *own, *[*cfg.overrides] * aligns])
        if part.get("needs_files") and not read:
            overrides = None
        if part.get("control"):
            path_given = f"data.source.path={os.path.abspath(cfg.control)}" if cfg.control else None
            overrides = [*overrides, "data=npz", path_given] if overrides is not None and path_given else None
        earlier = before.get(name, {})
        parts[str(name)] = {
            "title": part.title,
            "module": part.module,
            "config": part.config,
            "overrides": overrides,
            "lacking": part.get("lacking") or _lacking(part, size),
            "draw": part.get("draw"),
            "seconds": earlier.get("seconds"),
            "error": earlier.get("error"),
        }
    return {"quick": bool(cfg.quick), "parts": parts}


def _lacking(part: DictConfig, size: str) -> str:
    return "give data_root=FOLDER, where its files are" if part.get("needs_files") else f"not a part of the {size} run"


def last_of_each(overrides: list[str]) -> list[str]:
    """Of overrides of the same option, which one follows after another, the last.

    Example:
        >>> last_of_each(["seeds=[0,1]", "only=null", "seeds=[0]"])
        ['only=null', 'seeds=[0]']
    """
    last = {override.partition("=")[0]: place for place, override in enumerate(overrides)}
    return [override for place, override in enumerate(overrides) if last[override.partition("=")[0]] == place]


def _wanted(cfg: DictConfig) -> list[str]:
    known = list(cfg.parts)
    wanted = known if cfg.only is None else list(cfg.only)
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise ArgumentError(f"only: expected some of {known}, got {wanted}.")
    return wanted


if __name__ == "__main__":
    main()
