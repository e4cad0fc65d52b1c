"""The wheel holds ``calmrl_prob`` alone and works in an environment that has nothing else of this checkout."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow

FIRST_STEPS = """
import sys
from pathlib import Path

import numpy as np

import calmrl_prob as cal

assert Path(cal.__file__).is_relative_to(sys.prefix), cal.__file__

rng = np.random.default_rng(0)
z = rng.normal(size=(200, 2))
arrays = {name: z @ rng.normal(size=(2, 5)) + 0.1 * rng.normal(size=(200, 5)) for name in ("image", "text", "audio")}
truth = arrays["audio"][:50].copy()
arrays["audio"][:50] = np.nan

data = cal.MultimodalData(arrays)
model = cal.SharedLatentModel(data.dims, latent_dim=2)
fit = cal.fit(model, data, seed=0)
audio = np.asarray(cal.impute(model, data).mean["audio"])[:50]
error = np.sqrt(np.mean((audio - truth) ** 2))
assert error < 0.2, error  # noise is 0.1; a column mean would err by about 1.4
"""


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_the_library_alone(wheel: Path) -> None:
    files = zipfile.ZipFile(wheel).namelist()
    rooms = {name.split("/")[0] for name in files}
    assert {room for room in rooms if not room.endswith(".dist-info")} == {"calmrl_prob"}

    in_checkout = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "calmrl_prob").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    templates = {f"calmrl_prob/model_templates/{path.name}" for path in (ROOT / "models").glob("*.py")}
    assert {name for name in files if name.startswith("calmrl_prob/")} == in_checkout | templates
    assert "calmrl_prob/py.typed" in files
    assert any(name.endswith("licenses/LICENSE") for name in files)


def test_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "empty", with_pip=True)
    python = tmp_path / "empty" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    run(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path)
    run(python, "-m", "pip", "check", cwd=tmp_path)
    run(python, "-I", "-c", FIRST_STEPS, cwd=tmp_path)
    assert run(python.with_name("calmrl"), "--version", cwd=tmp_path).startswith("calmrl-prob ")
    assert "Wrote mixture.py" in run(python.with_name("calmrl"), "new-model", "mixture", cwd=tmp_path)
    run(python, "-I", tmp_path / "mixture.py", cwd=tmp_path)
