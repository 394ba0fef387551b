from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from paths import ROOT

BUSY = """
import multiprocessing, os, pathlib, sys, time
from kairos_env.runs import exit_with_parent

def compute():
    exit_with_parent()
    pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
    while True:
        sum(range(1000))

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=compute).start()
    time.sleep(600)
"""


def test_a_computing_worker_ends_with_its_killed_parent(tmp_path: Path) -> None:
    script, note = tmp_path / "busy.py", tmp_path / "pid"
    script.write_text(BUSY)
    parent = subprocess.Popen(
        [sys.executable, str(script), str(note)], env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL
    )
    while not note.exists() or not note.read_text():
        time.sleep(0.02)
    worker = int(note.read_text())
    os.kill(worker, 0)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 5
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(worker)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
