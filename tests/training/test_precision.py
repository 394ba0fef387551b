"""The precision that a machine is faster in, chosen once for each run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from moving_square import SPEC, config, moving_square

from kairos_env.sims.tabletop.env import TASKS
from kairos_env.training import precision
from kairos_env.training.precision import choose_precision, product_seconds
from kairos_env.training.run import train


def as_if(bf16: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which products in float32 take a second, and in bfloat16 so many."""
    monkeypatch.setattr(precision, "product_seconds", lambda dtype: bf16 if dtype == torch.bfloat16 else 1.0)


def test_a_cpu_is_measured_and_a_wish_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert product_seconds(torch.float32) > 0
    as_if(0.4, monkeypatch)
    assert choose_precision("auto", "cpu") == ("bf16", "products in bf16 are 2.50 times as fast as in fp32 here")
    as_if(1.9, monkeypatch)
    assert choose_precision("auto", "cpu")[0] == "fp32"
    assert choose_precision("bf16", "cpu") == ("bf16", "as asked for")
    assert choose_precision("auto", "cuda") == ("bf16", "chosen for cuda")


def test_a_run_keeps_its_precision_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = dataclasses.replace(config(tmp_path, 2), precision="auto")
    episodes, said = [moving_square(i) for i in range(12)], []
    for seconds in (1.9, 0.4):
        as_if(seconds, monkeypatch)
        train(wanted, episodes, SPEC, {"push": TASKS["push"]}, say=said.append)
    assert json.loads((tmp_path / "config.json").read_text())["precision"] == "fp32"
    assert "precision fp32: products in bf16 are 0.53 times as fast as in fp32 here" in said
    launches = [json.loads(line) for line in (tmp_path / "launches.jsonl").read_text().splitlines()]
    assert [launch["precision"] for launch in launches] == [said[0].partition(": ")[2], "as asked for"]
