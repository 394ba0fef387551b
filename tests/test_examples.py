"""Every example runs, in its short form, as a user would run it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from counting_model import shaken_model
from libero_home import libero_home

from kairos_env.world_model.checkpoint import bundled_models

ROOT = Path(__file__).resolve().parent.parent


def words(path: Path) -> set[str]:
    return set(re.findall(r"Kairos-\w+|\w+", path.read_text()))


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# Simulator and learner together take a while to start.
RUNS = [
    pytest.param(path, marks=[pytest.mark.slow] if {"stable_baselines3", "Kairos-LIBERO"} & words(path) else [])
    for path in EXAMPLES
]


@pytest.mark.parametrize("example", RUNS, ids=[path.stem for path in EXAMPLES])
def test_example_runs(example: Path, tmp_path: Path) -> None:
    if "stable_baselines3" in example.read_text():
        pytest.importorskip("stable_baselines3")
    variables = {}
    if "Kairos-LIBERO" in example.read_text():
        (tmp_path / "sims").mkdir()
        (tmp_path / "sims" / "libero").symlink_to(libero_home(), target_is_directory=True)
        variables["KAIROS_SIMS"] = str(tmp_path / "sims")
    if "kairos-tiny" not in bundled_models():
        # An untrained stand-in where the bundled model would be found: this is about the code, not the numbers.
        shaken_model().save_pretrained(tmp_path / "kairos-tiny")
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(example), "--short"],
        cwd=tmp_path,
        env=os.environ | variables | {"PYTHONPATH": paths, "KAIROS_EXAMPLE_SHORT": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip(), "an example shows something"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_fits_on_a_page(example: Path) -> None:
    code = [line for line in example.read_text().splitlines() if line.strip()]
    assert len(code) <= 40


@pytest.mark.parametrize("benchmark", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_benchmark_finds_what_it_imports(benchmark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location(f"benchmark_{benchmark.stem}", benchmark)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look themselves up
    spec.loader.exec_module(module)
    assert module.__doc__, "it says how it is run, and what it prints"
