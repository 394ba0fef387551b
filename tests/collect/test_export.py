"""`kairos data export`: what it takes, what it refuses, and that imagination can be repeated."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kairos_env.cli.main import main
from kairos_env.collect.export import ExportConfig, export, imagined_episodes
from kairos_env.datasets.hdf5.recorded import EpisodeWriter
from kairos_env.datasets.lerobot.reader import LeRobotData
from kairos_env.records import Camera, Episode, Field, RobotSpec, SpecMismatch
from kairos_env.runs import INITIAL_STATES
from kairos_env.world_model.checkpoint import BUNDLED
from kairos_env.world_model.model import WorldModel

SPEC = RobotSpec("arm", (Camera("scene", 16, 16),), (Field("x", -1, 1, "m"),), (Field("dx", -1, 1, "m"),), 5.0)


def episode(task: str, steps: int = 3, spec: RobotSpec = SPEC) -> Episode:
    rng = np.random.default_rng(steps)
    return Episode(
        images={c.name: rng.integers(0, 255, (steps + 1, c.height, c.width, 3), np.uint8) for c in spec.cameras},
        proprio=rng.uniform(-0.01, 0.01, (steps + 1, spec.proprio_dim)).astype(np.float32),
        actions=rng.uniform(-0.01, 0.01, (steps, spec.action_dim)).astype(np.float32),
        rewards=np.zeros(steps, np.float32),
        success=np.zeros(steps, np.bool_),
        task=task,
        instruction=f"{task} it",
    )


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    with EpisodeWriter(tmp_path / "recorded.hdf5", SPEC) as writer:
        for steps, task in enumerate(("push", "lift", "push"), 3):
            writer.add(episode(task, steps))
    return tmp_path / "recorded.hdf5"


def test_recordings(recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["data", "export", "--from", f"{recording},{recording}", "--out", str(out)]) == 0
    assert f"6 recorded episodes, 30 frames: {out}" in capsys.readouterr().out
    found = LeRobotData(out)
    assert [len(one) for one in found] == [3, 4, 5, 3, 4, 5]
    assert found.spec == SPEC
    assert found[4].instruction == "lift it"


def test_choice_of_tasks_and_number(recording: Path, tmp_path: Path) -> None:
    export(ExportConfig(str(tmp_path / "out"), (str(recording),), tasks=("push",), images="png"), progress=False)
    assert [len(one) for one in LeRobotData(tmp_path / "out")] == [3, 5]
    export(ExportConfig(str(tmp_path / "one"), (str(recording),), episodes=1, images="png"), progress=False)
    assert [len(one) for one in LeRobotData(tmp_path / "one")] == [3]


def test_what_was_exported_can_be_exported_again(recording: Path, tmp_path: Path) -> None:
    export(ExportConfig(str(tmp_path / "first"), (str(recording),), images="png"), progress=False)
    export(ExportConfig(str(tmp_path / "second"), (str(tmp_path / "first"),), images="png"), progress=False)
    for one, other in zip(LeRobotData(tmp_path / "first"), LeRobotData(tmp_path / "second"), strict=True):
        assert np.array_equal(one.images["scene"], other.images["scene"])
        assert one.actions.tobytes() == other.actions.tobytes()


def test_imagination_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["--imagine", "2", "--task", "push,lift", "--policy", "random", "--decisions", "2", "--images", "png"]
    assert main(["data", "export", *words, "--out", str(out)]) == 0
    assert "2 imagined episodes" in capsys.readouterr().out
    assert json.loads((out / "meta/info.json").read_text())["robot_type"] == "panda-tabletop-imagined"
    found = LeRobotData(out)
    assert [one.task for one in found] == ["push", "lift"]
    model = WorldModel.from_pretrained("kairos-tiny")
    weights = (BUNDLED / "kairos-tiny/model.safetensors").read_bytes()
    for number, one in enumerate(found):
        assert one.labels["imagined"].tolist() == [False] + [True] * len(one)
        assert (one.labels["uncertainty"] > 0).all()  # of what is observed, too
        notes = found.provenance(number)
        assert notes["checkpoint_sha256"] == hashlib.sha256(weights).hexdigest()
        assert (notes["model"], notes["policy"], notes["ended"]) == ("kairos-tiny", "random", "time_limit")
        # the first frame is the start that is named, and with the seed it leads to the same future again
        start = model.starts[int(notes["start"].removeprefix("kairos-tiny: start "))]
        assert np.array_equal(one.images["scene"][0], start.images["scene"])
        state = model.observe([one.observation(0)], seeds=[notes["seed"]])
        rollout = model.imagine(state, one.actions[None], steps=notes["denoising_steps"])
        np.testing.assert_allclose(one.labels["uncertainty"][1:], rollout.uncertainty[0].numpy(), rtol=1e-4)
        seen = model.decode(rollout.latents)["scene"][0].astype(int)
        assert np.abs(seen - one.images["scene"][1:]).max() <= 1


def test_imagination_from_a_recording(tmp_path: Path) -> None:
    spec = WorldModel.from_pretrained("kairos-tiny").spec
    with EpisodeWriter(tmp_path / "recorded.hdf5", spec) as writer:
        writer.add(episode("push", spec=spec))
    config = ExportConfig("", imagine=1, policy="random", decisions=1, start=str(tmp_path / "recorded.hdf5"))
    [(one, notes)] = imagined_episodes(config)
    assert notes["start"] == f"{tmp_path / 'recorded.hdf5'}: episode 0, observation 0"
    assert np.array_equal(one.images["scene"][0], episode("push", spec=spec).images["scene"][0])
    [(again, _)] = imagined_episodes(config)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(one.images.values(), again.images.values(), strict=True))


def few_states(**options: Any) -> Any:
    """The table top with six initial states."""
    env = pytest.importorskip("kairos_env.sims.tabletop.env").RobosuiteEnv(**options)
    env.initial_states = lambda task=None: 6
    return env


def test_imagination_starts_where_no_evaluation_does() -> None:
    settings: dict[str, Any] = {"imagine": 6, "policy": "random", "decisions": 1}
    few = [e.initial_state for e, _ in imagined_episodes(ExportConfig("", start=f"{__name__}:few_states", **settings))]
    assert few == [0, 1, 2, 3, 0, 1], "the last fifth is held out"
    config = ExportConfig("", start="Kairos-Robosuite-v0", options={"max_episode_steps": 9}, **settings)
    many = imagined_episodes(config)
    assert next(many)[0].initial_state in INITIAL_STATES["export"]
    many.close()


def test_start_of_another_robot(recording: Path) -> None:
    with pytest.raises(SpecMismatch, match="describe different robots"):
        next(imagined_episodes(ExportConfig("", imagine=1, start=str(recording))))


def test_recordings_of_two_robots(recording: Path, tmp_path: Path) -> None:
    other = RobotSpec("arm", SPEC.cameras, SPEC.proprio, (Field("dx", -2, 2, "m"),), 5.0)
    with EpisodeWriter(tmp_path / "other.hdf5", other) as writer:
        writer.add(episode("push", spec=other))
    with pytest.raises(SpecMismatch, match="describe different robots"):
        export(ExportConfig(str(tmp_path / "out"), (str(recording), str(tmp_path / "other.hdf5"))), progress=False)
    assert not any("out" in path.name for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either recordings"),
        ({"source": ("a",), "imagine": 2}, "give either recordings"),
        ({"imagine": -1}, "imagine must be >= 0"),
        ({"imagine": 1, "decisions": 0}, "decisions must be at least 1"),
    ],
)
def test_illegal_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExportConfig("out", **options)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--imagine", "1", "--policy", "polcy"], "did you mean 'policy'?"),
        (["--imagine", "1", "--task", "pull"], "legal: lift, place, push"),
        (["--imagine", "1", "--model", "kairos-tyni"], "did you mean 'kairos-tiny'?"),
        (["--imagine", "1", "--start", "nowhere"], "unknown simulator 'nowhere'"),
        (["--from", "nowhere"], "nowhere"),
        (["--from", "RECORDING", "--task", "pull"], "there is no episode of the tasks pull"),
        (["--from", "RECORDING", "--out", "TAKEN"], "exists; name another folder"),
    ],
)
def test_refused_and_nothing_is_left(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    (tmp_path / "taken").mkdir()
    places = {"RECORDING": str(recording), "TAKEN": str(tmp_path / "taken")}
    out = [] if "--out" in words else ["--out", str(tmp_path / "out")]
    assert main(["data", "export", *(places.get(word, word) for word in words), *out]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recorded.hdf5", "taken"]


def test_exporting_stops_half_way(recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_then_none(config: ExportConfig) -> Any:
        yield from itertools.islice(imagined_episodes(config), 1)
        raise RuntimeError("the machine was needed")

    monkeypatch.setattr("kairos_env.collect.export.imagined_episodes", one_then_none)
    with pytest.raises(RuntimeError, match="needed"):
        export(ExportConfig(str(tmp_path / "out"), imagine=2, policy="random", decisions=1), progress=False)
    assert not any("out" in path.name for path in tmp_path.iterdir())
