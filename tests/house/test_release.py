"""What a release is made of says the same everywhere: versions, Pythons, workflows, the list of targets."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.house.imports import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PYTHONS = [name.split()[-1] for name in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", name)]

in_every_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def read(path: Path) -> dict[Any, Any]:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def test_there_are_workflows_for_tests_docs_audits_and_releases() -> None:
    assert [path.stem for path in WORKFLOWS] == ["audit", "docs", "release", "tests"]


@in_every_workflow
def test_a_workflow_is_whole(path: Path) -> None:
    workflow = read(path)
    assert workflow[True], "when it runs"  # YAML 1.1 reads the key `on` as true
    assert workflow["permissions"] == {"contents": "read"}, "no job may write but those that say so"
    jobs = workflow["jobs"]
    for name, job in jobs.items():
        assert job["runs-on"] == "ubuntu-latest"
        needed = job.get("needs", [])
        assert {needed} if isinstance(needed, str) else set(needed) <= set(jobs), name
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), step
            assert "uses" not in step or re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step["uses"]), step
            assert not re.search(r"\$\{\{\s*github\.(event|head_ref)", step.get("run", "")), "of others' making"


@in_every_workflow
def test_a_workflow_runs_targets_and_files_that_are_there(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = path.read_text(encoding="utf-8")
    assert set(re.findall(r"make ([a-z-]+)", text)) <= targets
    for mentioned in re.findall(r"\b(?:tests/[\w/]+\.py|constraints\.txt|pyproject\.toml|CHANGELOG\.md)", text):
        assert (ROOT / mentioned).exists(), mentioned


def test_workflows_try_the_pythons_that_are_claimed() -> None:
    matrices = [
        job["strategy"]["matrix"]["python"]
        for path in WORKFLOWS
        for job in read(path)["jobs"].values()
        if "strategy" in job
    ]
    assert len(matrices) == 2
    assert all(matrix == PYTHONS for matrix in matrices)
    low, high = PROJECT["requires-python"].split(",")
    assert low == f">={PYTHONS[0]}"
    assert high == f"<3.{int(PYTHONS[-1].split('.')[1]) + 1}"


def test_the_version_is_the_same_everywhere() -> None:
    version = PROJECT["version"]
    assert str(read(ROOT / "CITATION.cff")["version"]) == version
    released = re.findall(r"^## \[(\d[\d.]*)\] - \d{4}-\d{2}-\d{2}$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert released[0] == version


def test_help_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?m)^\.PHONY: (.*)$", text)[0].split())
    assert set(re.findall(r"(?m)^([a-z-]+):.*##", text)) == targets


def test_forms_and_the_container_can_be_read() -> None:
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        read(form)
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert container["image"].startswith("python:3")
