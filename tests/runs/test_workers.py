"""Every long command ends at SIGTERM as at Ctrl-C: with a message, an exit code, and no process left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from paths import ROOT, TESTS

RECORD = "record --behaviours random --episodes 300 --decisions 20"
EVAL = "eval closed-loop --simulator point_simulator:Point --simulator-options seconds_a_step=0.05 --policy random"


def children(process: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True, check=False)
    return [int(word) for word in listed.stdout.split()]


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("words", [RECORD, f"{EVAL} --episodes 40"], ids=["record", "eval"])
def test_a_signal_ends_a_command_and_its_workers(words: str, number: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kairos_env.cli", *words.split(), "--workers", "1", "--out", str(tmp_path / "run")]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS)])}
    process = subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True, start_new_session=True)
    rows = tmp_path / "run" / ("episodes.jsonl" if words is RECORD else "results.jsonl")
    while process.poll() is None and not (rows.exists() and rows.stat().st_size):
        time.sleep(0.05)
    workers = children(process.pid)
    process.send_signal(number)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130 and "stopped; what was written is kept" in said and "Traceback" not in said, said
    assert workers
    end = time.monotonic() + 5
    while any(map(alive, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(alive, workers))
