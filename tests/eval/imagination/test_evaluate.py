from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kairos_env.datasets.hdf5.recorded import EpisodeWriter
from kairos_env.embodiments import libero_panda
from kairos_env.eval.imagination.evaluate import ImaginationConfig, evaluate_imagination, moving_episodes, path_cm
from kairos_env.eval.imagination.image_metrics import red_pixels, red_spots
from kairos_env.eval.imagination.probe import Probe, ProbeConfig, Reading, as_open, measure, train_probe
from kairos_env.eval.imagination.report import CONDITIONS
from kairos_env.records import Camera, Episode, Field, Observation, RobotSpec, SpecMismatch
from kairos_env.sims.tabletop.env import make_spec
from kairos_env.world_model.model import WorldModel

SIDE = 32
SPEC = RobotSpec(
    "toy-table",
    (Camera("scene", SIDE, SIDE),),
    tuple(Field(f"eef_{axis}", -0.2, 0.2, "m", "position", "table") for axis in "xyz"),
    tuple(Field(f"d{axis}", -0.05, 0.05, "m", "delta_position", "world") for axis in "xyz"),
    5.0,
)


def draw(gripper: np.ndarray, cube: np.ndarray) -> np.ndarray:
    """A grey table, a white gripper whose size tells its height, a red cube: uint8 (SIDE, SIDE, 3)."""
    image = np.full((SIDE, SIDE, 3), (90, 100, 110), np.uint8)
    for position, colour, half in ((cube, (220, 10, 10), 2), (gripper, (240, 240, 240), 5 + int(20 * gripper[2]))):
        column, row = (int(round(SIDE / 2 + 60 * p)) for p in position[:2])
        image[max(0, row - half) : max(0, row + half), max(0, column - half) : max(0, column + half)] = colour
    return image


def advance(state: np.ndarray, action: np.ndarray) -> np.ndarray:
    """(6,) gripper and cube, after one action; a gripper that is near drags the cube."""
    gripper, cube = state[:3].copy(), state[3:].copy()
    moved = np.clip(gripper + action, -0.2, 0.2)
    if np.linalg.norm((gripper - cube)[:2]) < 0.08:
        cube[:2] += (moved - gripper)[:2]
    return np.concatenate([moved, np.clip(cube, -0.2, 0.2)])


def episode(seed: int, steps: int = 8, still: bool = False) -> Episode:
    rng = np.random.default_rng(seed)
    start = rng.uniform(-0.15, 0.15, 3)
    # on average the cube lies near enough to be dragged in every second episode
    near = np.clip(start[:2] + rng.uniform(-0.1, 0.1, 2), -0.2, 0.2)
    states = [np.concatenate([start, near, [0.0]])]
    direction = rng.uniform(-0.04, 0.04, 3) * (not still)
    actions = np.clip(direction + rng.normal(0, 0.01 * (not still), (steps, 3)), -0.05, 0.05).astype(np.float32)
    for action in actions:
        states.append(advance(states[-1], action))
    track = np.stack(states).astype(np.float32)
    return Episode(
        images={"scene": np.stack([draw(s[:3], s[3:]) for s in track])},
        proprio=track[:, :3],
        actions=actions,
        rewards=np.zeros(steps, np.float32),
        success=np.zeros(steps, bool),
        task="drag",
        instruction="drag it",
        source="toy",
        initial_state=seed,
        labels={"object_position": track[:, 3:]},
    )


@dataclasses.dataclass
class Rollout:
    latents: torch.Tensor
    proprio: torch.Tensor
    success: torch.Tensor


class TrueModel:
    """The toy table's own dynamics behind the verbs: what a perfect world model would be.

    ``deaf`` ignores actions. A latent is the picture itself; the state keeps what a picture cannot tell.
    """

    def __init__(self, truth: list[Episode], deaf: bool = False) -> None:
        self.spec, self.deaf = SPEC, deaf
        self.by_frame = {
            e.images["scene"][t].tobytes() + e.proprio[t].tobytes(): np.concatenate(
                [e.proprio[t], e.labels["object_position"][t]]
            )
            for e in truth
            for t in range(len(e) + 1)
        }

    def observe(self, obs: Any, state: Any = None, action: Any = None, seeds: Any = None) -> Any:
        assert (state is None) == (action is None)
        return [self.by_frame[np.asarray(o.images["scene"]).tobytes() + o.proprio.tobytes()] for o in obs]

    def imagine(self, state: Any, actions: Any, steps: Any = None) -> Rollout:
        pictures, proprio = [], []
        for begin, plan in zip(state, actions, strict=True):
            states = [begin]
            for action in plan:
                states.append(advance(states[-1], action * (not self.deaf)).astype(np.float32))
            pictures.append(np.stack([draw(s[:3], s[3:]) for s in states[1:]]))
            proprio.append(np.stack([s[:3] for s in states[1:]]))
        frames = torch.from_numpy(np.stack(pictures))
        return Rollout(frames, torch.from_numpy(np.stack(proprio)), torch.full(frames.shape[:2], 0.25))

    def encode(self, obs: list[Observation]) -> torch.Tensor:
        return torch.from_numpy(np.stack([o.images["scene"] for o in obs]))

    def decode(self, latents: torch.Tensor) -> dict[str, np.ndarray]:
        return {"scene": latents.numpy()}


def test_a_probe_learns_to_read_positions(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path / "e.hdf5", SPEC) as writer:
        for seed in range(30):
            writer.add(episode(1000 + seed))
    settings = ProbeConfig(data=str(tmp_path), output=str(tmp_path / "a"), steps=1, batch=24, learning_rate=5e-3)
    untrained = train_probe(settings)
    trained = train_probe(dataclasses.replace(settings, output=str(tmp_path / "b"), steps=120))
    new = [episode(seed) for seed in range(10)]
    before, after = measure(untrained, new, SPEC), measure(trained, new, SPEC)
    assert after["gripper_median_mm"] < 0.7 * before["gripper_median_mm"]
    assert trained.floor["frames"] == 3 * 9, "a tenth of the episodes is held out"
    assert 0.5 < trained.floor["gripper_median_mm"] / after["gripper_median_mm"] < 2

    again = Probe.load(tmp_path / "b")
    images = new[0].images["scene"]
    assert np.array_equal(again.read(images).gripper, trained.read(images).gripper)
    assert again.floor == trained.floor and np.array_equal(again.mean_frame, trained.mean_frame)
    assert json.loads((tmp_path / "b" / "probe.json").read_text())["camera"] == "scene"
    with pytest.raises(ValueError, match=r"uint8 pictures .*, got uint8 \(2, 16, 16, 3\)"):
        again.read(np.zeros((2, 16, 16, 3), np.uint8))
    path = tmp_path / "b" / "probe.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        Probe.load(tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="kairos eval probe"):
        Probe.load(tmp_path / "none")


def test_a_probe_needs_labels(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path / "e.hdf5", SPEC) as writer:
        for seed in range(2):
            writer.add(dataclasses.replace(episode(seed), labels={}))
    with pytest.raises(ValueError, match="lacks the label 'object_position'"):
        train_probe(ProbeConfig(data=str(tmp_path), output=str(tmp_path / "p"), steps=1))


def test_the_bundled_probe_reads_the_simulators_pictures() -> None:
    sims = pytest.importorskip("kairos_env.sims.tabletop.env")
    probe = Probe.load()
    assert probe.floor["gripper_median_mm"] < 5 and probe.floor["cube_median_mm"] < 5
    assert probe.floor["opening_accuracy"] > 0.9
    try:
        env = sims.RobosuiteEnv()
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"no simulator here: {error}")
    errors = []
    for state_id in range(300_000, 300_010):
        observation, info = env.reset(seed=0, options={"initial_state": state_id, "task": "push"})
        if red_pixels(observation["image_scene"]) >= 10:
            reading = probe.read(observation["image_scene"])
            true = info["privileged"]
            errors.append([np.linalg.norm(reading.gripper - true["eef_position"])])
            errors[-1].append(np.linalg.norm(reading.cube - true["objects"]["cube"]["position"]))
    env.close()
    assert np.median(errors, 0).max() < 0.012


def test_an_opening_is_right_to_a_quarter_of_its_range() -> None:
    spec = make_spec()
    real = np.zeros((4, spec.proprio_dim))
    real[:, -1] = [0.0, 0.08, 0.045, 0.045]  # closed, open, around the cube
    right = as_open(np.array([0.01, 0.04, 0.05, 0.08]), real, spec)
    assert right is not None and right.tolist() == [True, False, True, False]
    without = dataclasses.replace(spec, proprio=spec.proprio[:3])
    assert without.gripper_field is None and as_open(real[:, 3], real[:, :3], without) is None


class PixelReader:
    """Reads the toy table's pictures by colour: exact up to a pixel, where nothing is hidden."""

    camera, floor = "scene", {"gripper_median_mm": 8.0, "gripper_mean_mm": 8.0}
    mean_frame = np.full((SIDE, SIDE, 3), 100, np.uint8)

    def read(self, images: np.ndarray) -> Reading:
        red = (images[..., 0] > 200) & (images[..., 1] < 50)
        white = images.min(-1) > 200
        shown = (red.sum((-2, -1)) > 0).astype(np.float32)
        return Reading(self._centre(white), self._centre(red), shown, np.full_like(shown, 0.04))

    def _centre(self, mask: np.ndarray) -> np.ndarray:
        rows, columns = np.mgrid[0:SIDE, 0:SIDE] + 0.5
        size = np.maximum(mask.sum((-2, -1)), 1)
        xy = [((mask * grid).sum((-2, -1)) / size - SIDE / 2) / 60 for grid in (columns, rows)]
        return np.stack([*xy, (np.sqrt(size) / 2 - 5) / 20], -1)


@pytest.fixture
def probe() -> Any:
    return PixelReader()


def test_red_pixels_are_the_cubes() -> None:
    image = draw(np.array([0.18, 0.18, 0.0]), np.zeros(3))
    assert red_pixels(image) == 16 and red_pixels(np.full((4, 4, 3), 200, np.uint8)) == 0


def test_spots_of_the_cubes_colour_are_counted_and_a_finger_before_it_makes_no_two() -> None:
    pictures = np.full((2, 3, SIDE, SIDE, 3), 90, np.uint8)
    red = np.array([200, 20, 20], np.uint8)
    pictures[0, 1, 4:8, 4:8] = red
    pictures[0, 2, 4:8, 4:10] = red
    pictures[0, 2, 4:8, 6:8] = 90
    pictures[1, 0, 4:8, 4:8] = pictures[1, 0, 20:24, 12:16] = red
    pictures[1, 1, 4:8, 4:8] = pictures[1, 1, 20:22, 12:14] = red  # the second is too small to be one
    assert red_spots(pictures).tolist() == [[0, 1, 1], [2, 1, 0]]
    assert red_spots(pictures[0, 1]) == 1


def test_a_perfect_model_is_perfect_and_shuffled_actions_are_not(probe: Any) -> None:
    episodes = [episode(seed) for seed in range(24)]
    report = evaluate_imagination(TrueModel(episodes), episodes, (1, 4, 8, 20), probe=probe, context=1, batch=5)  # type: ignore[arg-type]
    assert report.horizons == (1, 4, 8, 20)
    assert [report.count(h) for h in report.horizons[2:]] == [len(report.episodes), 0]
    assert report.summary("imagined", "psnr", 8).value == 60
    assert report.summary("imagined", "ssim", 8).value == pytest.approx(1)
    assert report.summary("imagined", "own_gripper_cm", 8).value == pytest.approx(0, abs=1e-4)
    assert report.summary("imagined", "gripper_cm", 8).value < 6, "the reader's own error"
    assert report.summary("copy", "psnr", 1).value > report.summary("copy", "psnr", 8).value
    assert report.summary("shuffled", "own_gripper_cm", 8).value > 5
    assert report.summary("imagined", "cube_counted", 8).value == 1
    assert report.summary("zero", "own_gripper_moved_cm", 8).value == pytest.approx(0, abs=1e-4)
    assert report.summary("zero", "gripper_moved_cm", 8).value == pytest.approx(0, abs=1e-4)
    assert report.summary("imagined", "own_gripper_moved_cm", 8).value > 2
    assert report.action_following(8).value > 2
    assert report.action_following(8).low > 1
    assert report.gain_db("copy", 8).low > 10
    assert report.summary("codec", "psnr", 8).value == 60
    assert np.all(report.own_success == [0.25, 0])
    assert np.isnan(report.summary("imagined", "psnr", 20).value)


def test_nothing_is_said_of_an_outcome_that_nobody_recorded(probe: Any) -> None:
    episodes = [dataclasses.replace(episode(seed), outcome_known=False) for seed in range(3)]
    report = evaluate_imagination(TrueModel(episodes), episodes, (1, 4), probe=probe)  # type: ignore[arg-type]
    assert np.isnan(report.own_success[:, 1]).all()
    assert not any("really" in note for note in report.notes())


def test_a_model_that_ignores_actions_is_found_out(probe: Any) -> None:
    episodes = [episode(seed) for seed in range(12)]
    report = evaluate_imagination(TrueModel(episodes, deaf=True), episodes, (4, 8), probe=probe)  # type: ignore[arg-type]
    assert report.action_following(8) == report.action_following(8, "mse")
    assert report.action_following(8).value == 1
    assert report.values["imagined"]["psnr"].tolist() == report.values["copy"]["psnr"].tolist()


def test_only_moving_episodes_count_and_context_shifts_the_start(probe: Any) -> None:
    episodes = [episode(seed) for seed in range(6)] + [episode(9, still=True)]
    model: Any = TrueModel(episodes)
    report = evaluate_imagination(model, episodes, (1, 4), probe=probe, context=3)
    assert report.skipped == len(episodes) - len(report.episodes) >= 1
    assert report.summary("imagined", "psnr", 4).value == 60
    start = moving_episodes(episodes, SPEC, first=2)[0]
    film = next(iter(report.films.values()))
    assert np.array_equal(film["real"][0], start.images["scene"][2])
    assert np.array_equal(film["imagined"], film["real"])
    assert path_cm(np.array([[0, 0, 0], [0.03, 0.04, 0], [0, 0, 0]])) == pytest.approx(10)
    with pytest.raises(ValueError, match="none of the 1 episodes moves"):
        evaluate_imagination(model, [episodes[-1]], (1,))
    with pytest.raises(ValueError, match="context and horizons"):  # before anything is recorded
        ImaginationConfig(horizons=(0,))
    with pytest.raises(ValueError, match="context and horizons"):
        evaluate_imagination(model, episodes, (0,))


def test_the_cube_is_measured_where_it_can_be_seen(probe: Any) -> None:
    hidden = episode(1)
    images = np.stack([draw(np.append(s[:2], 0.2), np.array([9.0, 9.0, 0])) for s in hidden.proprio])
    hidden = dataclasses.replace(hidden, images={"scene": images})
    episodes = [episode(seed) for seed in range(8)] + [hidden]
    report = evaluate_imagination(TrueModel(episodes), episodes, (8,), probe=probe)  # type: ignore[arg-type]
    assert np.isnan(report.values["imagined"]["cube_cm"][-1, 0])
    assert report.cube_moved(8).sum() >= 1 and not report.cube_moved(8)[-1]
    assert report.cube_moved_cm[:, 0][report.cube_moved(8)].min() >= 2
    assert report.summary("imagined", "red_ratio", 8).value == 1


def test_the_report_says_what_it_rests_on_and_is_written(probe: Any, tmp_path: Path) -> None:
    episodes = [episode(seed) for seed in range(8)]
    report = evaluate_imagination(TrueModel(episodes), episodes, (1, 8), probe=probe, films=2)  # type: ignore[arg-type]
    report.save(tmp_path)
    text = report.table()
    assert "Floor of the position reader" in text and "left out" in text and "shuffled ÷ true" in text
    data = json.loads((tmp_path / "imagination.json").read_text())
    assert data["summary"]["imagined/psnr"]["8"]["value"] == 60
    assert set(data["values"]) == set(CONDITIONS)
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 2
    assert "data:image/png;base64," in (tmp_path / "report.html").read_text()


def test_a_real_model_gives_the_same_numbers_in_any_batch(probe: Any) -> None:
    model = WorldModel.from_preset("debug", SPEC, {"drag": "drag it"}, seed=0)
    episodes = [episode(seed, steps=6) for seed in range(5)]
    reports = [evaluate_imagination(model, episodes, (1, 6), probe=probe, batch=size) for size in (2, 5)]
    for condition in CONDITIONS:
        a, b = (report.values[condition]["mse"] for report in reports)
        assert np.allclose(a, b, rtol=1e-2, atol=1.0)
    assert np.isfinite(reports[0].values["imagined"]["gripper_cm"]).all()
    other = dataclasses.replace(SPEC, cameras=(Camera("scene", 48, 48),))
    with pytest.raises(SpecMismatch):
        evaluate_imagination(WorldModel.from_preset("debug", other, {"drag": "drag it"}), episodes, (1,))


def test_every_camera_counts_where_no_probe_reads_one() -> None:
    """A wrist camera that sees everything move, beside one that stands still."""
    spec = dataclasses.replace(SPEC, cameras=(Camera("front", SIDE, SIDE), Camera("wrist", SIDE, SIDE)))
    episodes = []
    for seed in range(2):
        whole = episode(seed)
        still = np.repeat(whole.images["scene"][:1], len(whole) + 1, 0)
        episodes.append(dataclasses.replace(whole, images={"front": still, "wrist": whole.images["scene"]}))
    model = WorldModel.from_preset("debug", spec, {"drag": "drag it"})
    report = evaluate_imagination(model, episodes, (1, 8), films=1)
    wrist = [e.images["wrist"].astype(float) for e in episodes]
    halved = [np.square(w[8] - w[0]).mean() / 2 for w in wrist]
    assert report.values["copy"]["mse"][:, 1] == pytest.approx(halved)
    assert next(iter(report.films.values()))["real"].shape == (9, SIDE, 2 * SIDE, 3)


def test_a_probe_says_which_robots_it_can_read() -> None:
    probe, other = Probe.load(), libero_panda(64)
    assert not probe.can_read(other) and not probe.can_read(SPEC)
    with pytest.raises(ValueError, match=r"reads the camera 'scene' \(64 x 64\), but 'libero-panda' has agentview"):
        probe.require_readable(other)
    assert probe.can_read(dataclasses.replace(SPEC, cameras=(Camera("scene", 64, 64),)))


def test_a_robot_that_does_not_say_where_its_hand_is_moves_in_every_episode() -> None:
    joints = dataclasses.replace(SPEC, proprio=tuple(Field(f"j{i}", -1, 1, "rad", "joint_position") for i in range(3)))
    episodes = [episode(0, still=True), episode(1)]
    assert len(moving_episodes(episodes, SPEC)) == 1 and len(moving_episodes(episodes, joints)) == 2
    with pytest.raises(ValueError, match="does not say where the hand is"):
        measure(Probe.load(), episodes, joints)
