"""A run's folder: one writer, files whole or not at all, rows that survive a kill, and initial states kept apart."""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from paths import ROOT

from kairos_env.runs import (
    INITIAL_STATES,
    ConfigMismatch,
    FolderInUse,
    WriteLock,
    append_jsonl,
    atomic_write,
    check_initial_states,
    did_you_mean,
    open_run,
    put_in_place,
    read_jsonl,
    remove_leftovers,
    single_threaded_workers,
    split_initial_states,
    temporary_for,
    write_json,
    write_text,
)


def dead_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_a_run_is_continued_only_under_its_configuration(tmp_path: Path) -> None:
    folder = open_run(tmp_path / "run", {"seed": 1, "tasks": ("push",)}, {"workers": 2})
    open_run(folder, {"seed": 1, "tasks": ["push"]}, {"workers": 4})
    launches = read_jsonl(folder / "launches.jsonl")
    assert [launch["workers"] for launch in launches] == [2, 4] and launches[0]["versions"]["numpy"]
    assert json.loads((folder / "config.json").read_text()) == {"seed": 1, "tasks": ["push"]}
    with pytest.raises(ConfigMismatch, match=r"(?s)seed: 1 there, 2 now.*tasks: \[\"push\"\] there, null now"):
        open_run(folder, {"seed": 2})
    with pytest.raises(ConfigMismatch, match="another configuration or another version of Kairos, which can be read"):
        open_run(folder, {"seed": 1, "tasks": ["push"], "batch": 2})
    assert len(read_jsonl(folder / "launches.jsonl")) == 2


@pytest.mark.parametrize("text", ["[1]", "{", "3", ""])
def test_a_damaged_configuration_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is damaged .*choose another output folder"):
        open_run(tmp_path, {"seed": 1})


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_folder_or_file_has_one_writer_and_the_refusal_names_it(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"
    if kind == "folder":
        place.mkdir()
    with WriteLock(place, "recording into") as lock:
        with pytest.raises(FolderInUse, match=rf"another process \({os.getpid()}\) is recording into .*place"):
            WriteLock(place, "recording into")
        lock.release()
        lock.release()
        with WriteLock(place):
            pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == (["place"] if kind == "folder" else [])


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = f"import time; from kairos_env.runs import WriteLock; lock = WriteLock({str(tmp_path)!r}); print(1, flush=1)"
    owner = subprocess.Popen([sys.executable, "-c", code + "; time.sleep(60)"], stdout=subprocess.PIPE, cwd=ROOT)
    assert owner.stdout is not None
    owner.stdout.readline()
    with pytest.raises(FolderInUse, match=rf"another process \({owner.pid}\)"):
        WriteLock(tmp_path)
    owner.kill()
    owner.communicate()
    WriteLock(tmp_path).release()


def test_a_file_is_replaced_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "data[1].txt"
    write_text(path, "old")
    with pytest.raises(OSError, match="disk"), atomic_write(path) as part:
        part.write_text("half")
        assert part.parent == path.parent and path.read_text() == "old"
        raise OSError("disk")
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]
    with atomic_write(path) as part:
        part.write_bytes(b"new")
    assert path.read_bytes() == b"new" and list(path.parent.iterdir()) == [path]


def test_a_folder_is_replaced_only_when_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for number, good in enumerate((True, False, True)):
        try:
            with atomic_write(folder) as part:
                (part / "inside").mkdir(parents=True)
                (part / "inside" / "weights").write_text(str(number))
                assert good
        except AssertionError:
            pass
        assert (folder / "inside" / "weights").read_text() == ("0" if number < 2 else "2")
    assert list(tmp_path.iterdir()) == [folder]


def test_what_killed_processes_left_is_removed_and_what_living_ones_write_is_not(tmp_path: Path) -> None:
    killed, living = tmp_path / f".a.{dead_process()}.tmp", tmp_path / f".a.{os.getppid()}.tmp"
    for path in (killed, living):
        path.write_text("half")
    write_json(tmp_path / "a", {})
    assert living.exists() and not killed.exists()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_kill_between_the_renamings_of_a_folder_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with atomic_write(folder) as part:
        part.mkdir()
        (part / "weights").write_text("old")
    folder.rename(tmp_path / ".model.old")
    temporary = temporary_for(folder)
    assert (folder / "weights").read_text() == "old"
    temporary.mkdir()
    put_in_place(temporary, folder)
    assert list(tmp_path.rglob("*")) == [folder]


def test_rows_survive_a_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_jsonl(path) == []
    append_jsonl(path, {"n": 0})
    with open(path, "a") as file:
        file.write('{"n": 1, "cut')
    assert read_jsonl(path) == [{"n": 0}]
    append_jsonl(path, {"n": 2})
    assert read_jsonl(path) == [{"n": 0}, {"n": 2}] and path.read_text() == '{"n": 0}\n{"n": 2}\n'
    for bad in ("nonsense", "[1]"):
        path.write_text(f'{{"n": 0}}\n{bad}\n{{"n": 1}}\n')
        with pytest.raises(ValueError, match=r"rows.jsonl, line 2 is no row .*delete that line"):
            read_jsonl(path)


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("stesp", ["steps", "lr"], "did you mean 'steps'?"),
        ("pth", ["data.path", "lr"], "did you mean 'data.path'?"),
        ("zzz", ["a", "b"], "legal: a, b"),
        ("zzz", [], "legal: none"),
        ("zzz", [f"x{i}" for i in range(30)], f"legal: {', '.join(f'x{i}' for i in range(24))} and 6 more"),
        (7, [8, 77], "did you mean '77'?"),
    ],
)
def test_did_you_mean(word: object, known: list[object], meant: str) -> None:
    assert did_you_mean(word, known) == meant


def test_no_two_purposes_share_an_initial_state() -> None:
    for (one, a), (other, b) in itertools.combinations(INITIAL_STATES.items(), 2):
        assert a.stop <= b.start or b.stop <= a.start, (one, other)


@pytest.mark.parametrize(("count", "training", "held_out"), [(50, 40, 10), (6, 4, 2), (1, 1, 0)])
def test_the_last_fifth_of_numbered_initial_states_is_held_out(count: int, training: int, held_out: int) -> None:
    first, second = split_initial_states(count)
    assert (len(first), len(second)) == (training, held_out) and [*first, *second] == list(range(count))


def test_initial_states_do_not_reach_into_another_purpose() -> None:
    first = INITIAL_STATES["training"]
    check_initial_states(first.start, len(first))
    with pytest.raises(ValueError, match=r"299999 \.\.\. 300000 reach beyond those for training \(100000 .* 299999\)"):
        check_initial_states(first.stop - 1, 2)
    with pytest.raises(ValueError, match="numbered from 0, got -1"):
        check_initial_states(-1, 1)


# worker processes

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


def test_workers_get_one_thread_and_the_environment_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with single_threaded_workers():
        assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "1"
    assert os.environ["OMP_NUM_THREADS"] == "3" and "MKL_NUM_THREADS" not in os.environ
