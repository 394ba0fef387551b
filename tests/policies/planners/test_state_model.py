"""The state model learns a small exact world, keeps the verbs' contract, and plans in the real simulator."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from paths import ROOT

from kairos_env.eval.controls.state_training import StateTrainingConfig, train_state_model
from kairos_env.policies import PlannerPolicy, cem, example_observation
from kairos_env.policies.planners.state_model import FILE_NAME, StateModel, StateModelConfig, TrueState
from kairos_env.records import Camera, Episode, Field, Observation, RobotSpec
from kairos_env.sims.tabletop.env import TASKS, make_spec

SPEC = RobotSpec(
    name="glider",
    cameras=(Camera("scene", 8, 8),),
    proprio=tuple(Field(f"eef_{axis}", -0.4, 0.4, "m") for axis in "xyz"),
    action=tuple(Field(f"d{axis}", -0.05, 0.05, "m", "delta_position") for axis in "xyz"),
    control_rate_hz=5,
)
NEAR_TASKS = {"near": "go to the cube", "far": "leave the cube"}


def glide(seed: int, length: int = 10) -> Episode:
    """The gripper moves by 0.8 of the action; the cube never moves."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-0.05, 0.05, (length, 3)).astype(np.float32)
    start = rng.uniform(-0.1, 0.1, (1, 3))
    eef = np.concatenate([start, start + 0.8 * actions.cumsum(0)]).astype(np.float32)
    cube = np.tile(rng.uniform(-0.1, 0.1, 3), (length + 1, 1)).astype(np.float32)
    away = np.linalg.norm(eef - cube, axis=1)[1:]
    near = np.clip(1 - 4 * away, 0, 1)
    labels = {
        "object_position": cube,
        "goal_position": np.zeros_like(cube),
        "task_rewards": np.stack([near, 1 - near], 1).astype(np.float32),
        "task_success": np.stack([away < 0.03, away > 0.3], 1),
    }
    return Episode({}, eef, actions, near, away < 0.03, labels=labels, label_tasks=("near", "far"))


@pytest.fixture(scope="module")
def trained() -> tuple[StateModel, dict]:
    config = StateTrainingConfig(updates=400, batch=128, unroll=2, held_out=0.1)
    sizes = StateModelConfig(width=32, members=2, reward_width=32)
    return train_state_model([glide(i) for i in range(150)], SPEC, NEAR_TASKS, config, sizes)


def begin(model: StateModel, cube: tuple[float, float, float], task: str = "near") -> TrueState:
    seen = Observation({}, np.zeros(3, np.float32), NEAR_TASKS[task])
    objects = {"cube": {"position": np.array(cube)}, "goal": {"position": np.zeros(3)}}
    return model.observe(seen, privileged=[{"objects": objects}])


def test_it_learns_the_motion_and_the_rewards(trained: tuple[StateModel, dict]) -> None:
    model, report = trained
    assert report["5"]["gripper_cm"] < 0.5 and report["5"]["object_cm"] < 0.2
    assert report["5"]["reward_mae"] < 0.06
    roll = model.imagine(begin(model, (0.1, 0, 0)), np.tile(np.float32([0.05, 0, 0]), (1, 3, 1)))
    assert roll.proprio[0, :, 0].tolist() == pytest.approx([0.04, 0.08, 0.12], abs=0.006)
    assert roll.reward.shape == roll.success.shape == roll.uncertainty.shape == (1, 3)
    assert (roll.uncertainty >= 0).all() and roll.object_position.shape == (1, 3, 3)
    assert roll.reward[0, 1] > roll.reward[0, 0]


def test_stepping_is_imagining_and_forks_do_not_mix(trained: tuple[StateModel, dict]) -> None:
    model, _ = trained
    both = TrueState.cat([begin(model, (0.1, 0, 0)), begin(model, (0, 0.1, 0), "far")])
    forked = both.fork(2)
    assert forked.batch_size == 4 and forked.task.tolist() == [0, 0, 1, 1]
    actions = np.random.default_rng(0).uniform(-0.05, 0.05, (4, 3, 3)).astype(np.float32)
    roll = model.imagine(forked.reseed([1, 2, 3, 4]), actions)
    state = both.select([1])
    for t in range(3):
        out = model.step(state, actions[3:, t])
        state = out.state
        assert np.allclose(out.reward, roll.reward[3:, t], atol=1e-6)
    assert np.allclose(state.proprio, roll.state.proprio[3:], atol=1e-6)


def test_the_instruction_decides_what_is_rewarded(trained: tuple[StateModel, dict]) -> None:
    model, _ = trained
    plans = {t: cem(model, begin(model, (0.1, 0.05, 0), t), horizon=4, iterations=3, rollout=True) for t in NEAR_TASKS}
    away = {t: np.linalg.norm(p.rollout.proprio[0, -1].numpy() - np.array([0.1, 0.05, 0])) for t, p in plans.items()}
    assert away["near"] < 0.06 < 0.1 < away["far"]
    with pytest.raises(ValueError, match="knows no task 'dance'"):
        model.observe(Observation({}, np.zeros(3, np.float32), "dance"), privileged=[{}])


def test_it_reads_a_running_environment(trained: tuple[StateModel, dict]) -> None:
    model, _ = trained
    env = SimpleNamespace(state=SimpleNamespace(cube=np.array([0.1, 0.0, 0.0]), goal=np.zeros(3)))
    env.unwrapped = env
    policy = PlannerPolicy(model.reading(env), cem, task="near", horizon=4, population=32, iterations=2)
    assert policy.act(Observation({}, np.zeros(3, np.float32)))[0] > 0.02
    with pytest.raises(ValueError, match="cannot see"):
        model.observe(Observation({}, np.zeros(3, np.float32), "go to the cube"))
    with pytest.raises(TypeError, match="true state"):
        model.reading(SimpleNamespace(unwrapped=SimpleNamespace()))


def test_save_and_load_give_the_same_model(trained: tuple[StateModel, dict], tmp_path: Path) -> None:
    model, _ = trained
    path = model.save(tmp_path)
    again = StateModel.load(tmp_path)
    actions = np.full((1, 4, 3), 0.02, np.float32)
    state = begin(model, (0.1, 0, 0))
    assert np.array_equal(model.imagine(state, actions).reward, again.imagine(state, actions).reward)
    assert again.spec == SPEC and again.tasks == NEAR_TASKS
    assert [p.name for p in tmp_path.iterdir()] == [FILE_NAME]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a state model"):
        StateModel.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="kairos eval state-model"):
        StateModel.load(tmp_path / "nothing")


def test_training_needs_labels() -> None:
    bare = Episode({}, np.zeros((3, 3), np.float32), np.zeros((2, 3), np.float32), np.zeros(2), np.zeros(2, bool))
    with pytest.raises(ValueError, match="kairos record"):
        train_state_model([bare], SPEC, NEAR_TASKS)
    with pytest.raises(ValueError, match="no episodes"):
        train_state_model([], SPEC, NEAR_TASKS)
    blind = RobotSpec("blind", SPEC.cameras, SPEC.action, SPEC.action, 5)
    with pytest.raises(ValueError, match="eef_x"):
        StateModel(blind, NEAR_TASKS)


def test_training_is_reproducible() -> None:
    config = StateTrainingConfig(updates=5, batch=16)
    models = [train_state_model(map(glide, range(10)), SPEC, NEAR_TASKS, config)[0] for _ in range(2)]
    state = begin(models[0], (0.1, 0, 0))
    actions = np.full((1, 2, 3), 0.02, np.float32)
    assert np.array_equal(models[0].imagine(state, actions).proprio, models[1].imagine(state, actions).proprio)


def test_the_bundled_state_model_is_small_and_fits_the_simulator() -> None:
    folder = ROOT / "kairos_env" / "pretrained" / "state-model"
    model = StateModel.load("state-model")
    model.spec.require_same(make_spec())
    assert model.tasks == {name: TASKS[name] for name in ("reach", "push", "lift")}
    assert (folder / FILE_NAME).stat().st_size < 1e6
    report = json.loads((folder / "report.json").read_text())
    assert report["10"]["object_cm"] < report["10"]["object_still_cm"]


def test_the_bundled_state_model_plans_a_reach() -> None:
    """From above the cube, the first planned moves go down to it."""
    model = StateModel.load("state-model")
    seen = example_observation(make_spec())
    seen = Observation(seen.images, np.array([0.0, 0.0, 0.15, 0.08], np.float32), TASKS["reach"])
    cube, goal = ({"position": np.array(where)} for where in ([0.0, 0.0, 0.02], [0.13, 0.0, 0.0]))
    truth = {"objects": {"cube": cube, "goal": goal}}
    plan = cem(model, model.observe(seen, privileged=[truth]), horizon=6, rollout=True)
    end = plan.rollout.proprio[0, :, :3]
    assert np.linalg.norm(end.numpy() - np.array([0.0, 0.0, 0.02]), axis=1).min() < 0.035
    assert plan.rollout.success.max() > 0.5
