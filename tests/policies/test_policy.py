"""Policies, their memory and their wrappers, on a counting model and on the real `debug` model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kairos_env.policies import (
    ChunkExecution,
    ExpertPolicy,
    Policy,
    RandomPolicy,
    ReplayPolicy,
    TemporalEnsembling,
    WorldModelPolicy,
    check_policy,
    example_observation,
)
from kairos_env.records import ActionChunk, Array, Observation
from kairos_env.sims.tabletop.env import TASKS, make_spec

SPEC = make_spec()


class Counting:
    """A chunk policy that says (decision + step) / 1000 on every axis, and remembers what it is told."""

    def __init__(self, length: int = 4) -> None:
        self.length = length
        self.reset()

    def reset(self, seed: int | None = None) -> None:
        self.decisions = 0
        self.told: list[tuple[Observation, Array]] = []

    def chunk(self, observation: Observation) -> ActionChunk:
        steps = np.arange(self.length) + 10 * self.decisions
        self.decisions += 1
        return ActionChunk(np.repeat(steps[:, None] / 1000, 4, axis=1).astype(np.float32))

    def act(self, observation: Observation) -> Array:
        return self.chunk(observation).actions[0]

    def follow(self, observation: Observation, action: Array) -> None:
        self.told.append((observation, action))


class WindowModel:
    """Stands for a world model: its state is the list of all that it was told."""

    spec, tasks, chunk_length = SPEC, TASKS, 3

    def __init__(self) -> None:
        self.asked = 0

    def observe(
        self, obs: Sequence[Observation], state: Any = None, action: Any = None, seeds: Any = None
    ) -> tuple[Any, ...]:
        if state is None:
            return ("start", tuple(seeds), obs[0].instruction, obs[0].proprio[0])
        return (*state, tuple(np.round(action[0], 4)), obs[0].proprio[0])

    def act(self, state: tuple[Any, ...], steps: int | None = None) -> Array:
        self.asked += 1
        rng = np.random.default_rng([state[1][0], len(state)])
        return rng.uniform(-0.04, 0.04, (1, self.chunk_length, 4)).astype(np.float32)


def see(x: float = 0.0) -> Observation:
    shown = example_observation(SPEC)
    return Observation(shown.images, np.array([x, 0, 0.1, 0.04], np.float32), shown.instruction)


@pytest.mark.parametrize(
    "policy",
    [
        RandomPolicy(SPEC, seed=1),
        ReplayPolicy(np.zeros((3, 4), np.float32), SPEC),
        ChunkExecution(RandomPolicy(SPEC), 3),
        TemporalEnsembling(RandomPolicy(SPEC)),
        ChunkExecution(Counting(), 2),
        TemporalEnsembling(Counting()),
        WorldModelPolicy(WindowModel()),  # type: ignore[arg-type]
        WorldModelPolicy(WindowModel(), execute=3),  # type: ignore[arg-type]
    ],
    ids=lambda p: type(p).__name__,
)
def test_policies_keep_the_contract(policy: Policy) -> None:
    check_policy(policy, SPEC)


def test_the_checker_names_the_mistake() -> None:
    class Forgetful(Counting):
        def reset(self, seed: int | None = None) -> None:
            self.told = []
            self.decisions = getattr(self, "decisions", 0)

    class Wide(Counting):
        def act(self, observation: Observation) -> Array:
            return np.ones(4, np.float32)

    class Double(Counting):
        def act(self, observation: Observation) -> Array:
            return np.zeros(4)

    with pytest.raises(AssertionError, match="reset"):
        check_policy(Forgetful(), SPEC)
    with pytest.raises(AssertionError, match="bounds"):
        check_policy(Wide(), SPEC)
    with pytest.raises(AssertionError, match="float64"):
        check_policy(Double(), SPEC)
    with pytest.raises(AssertionError, match="lacks"):
        check_policy(object(), SPEC)  # type: ignore[arg-type]


def test_chunk_execution_decides_every_nth_step_and_tells_what_was_done() -> None:
    inner = Counting()
    policy = ChunkExecution(inner, 3)
    observations = [see(x) for x in (0.0, 0.1, 0.2, 0.3)]
    actions = [policy.act(o)[0] for o in observations]
    assert np.allclose(actions, [0.0, 0.001, 0.002, 0.01])
    assert [o for o, _ in inner.told] == observations
    assert np.allclose([a[0] for _, a in inner.told], actions)
    policy.reset()
    assert policy.act(observations[0])[0] == 0.0
    with pytest.raises(ValueError, match="execute"):
        ChunkExecution(inner, 0)


def test_temporal_ensembling_averages_what_was_said_about_the_step() -> None:
    policy = TemporalEnsembling(Counting(length=3), decay=0.5)
    said = [np.array([0]), np.array([1, 10]), np.array([2, 11, 20]), np.array([12, 21, 30])]  # oldest first
    for values in said:
        weights = np.exp(-0.5 * np.arange(len(values)))
        expected = (weights * values / 1000).sum() / weights.sum()
        assert policy.act(see())[0] == pytest.approx(expected, rel=1e-5)
    policy.reset()
    assert policy.act(see())[0] == 0.0


def test_the_world_model_sees_every_observation_once_with_the_action_that_led_there() -> None:
    model: Any = WindowModel()
    policy = WorldModelPolicy(model, task="push", execute=3)
    policy.reset(seed=7)
    actions = []
    for x in (0.0, 0.1, 0.2, 0.3):
        observation = see(x)
        actions.append(policy.act(observation))
    assert model.asked == 2  # decisions at steps 0 and 3
    state = policy.memory.see(observation)
    done = [tuple(np.round(a, 4)) for a in actions[:3]]
    assert state == ("start", (7,), TASKS["push"], np.float32(0.0), done[0], np.float32(0.1), done[1],
                     np.float32(0.2), done[2], np.float32(0.3))  # fmt: skip


def test_a_wrapped_world_model_remembers_the_executed_and_not_the_proposed_action() -> None:
    model: Any = WindowModel()
    policy = TemporalEnsembling(WorldModelPolicy(model, task="push"), decay=0.0)
    actions = [policy.act(see(x)) for x in (0.0, 0.1, 0.2)]
    inner: Any = policy.policy
    state = inner.memory.see(see(0.3))
    assert [s for s in state[4:] if isinstance(s, tuple)] == [tuple(np.round(a, 4)) for a in actions]


def test_world_model_policy_repeats_itself_under_a_seed_only() -> None:
    model: Any = WindowModel()
    policy = WorldModelPolicy(model, task="lift")
    first, other = [], []
    for episode in (first, other):
        policy.reset(seed=3)
        episode += [policy.act(see(x)) for x in (0.0, 0.1)]
    assert np.array_equal(first, other)
    policy.reset()
    drawn = policy.act(see(0.0))
    policy.reset()
    assert not np.array_equal(drawn, policy.act(see(0.0)))


def test_world_model_policy_refuses_what_it_cannot_do() -> None:
    model: Any = WindowModel()
    with pytest.raises(ValueError, match="it has reach, push, lift"):
        WorldModelPolicy(model, task="fold")
    with pytest.raises(ValueError, match="not both"):
        WorldModelPolicy(model, task="push", instruction="push")
    with pytest.raises(ValueError, match="proposes 3 actions"):
        WorldModelPolicy(model, execute=4)
    policy = WorldModelPolicy(model)
    policy.memory.see(see())
    with pytest.raises(RuntimeError, match="without an action between"):
        policy.memory.see(see())


def test_acting_runs_the_video_branch_once_per_observation_and_never_the_decoder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from kairos_env.world_model.dit import StreamingVideoDiT
    from kairos_env.world_model.model import WorldModel
    from kairos_env.world_model.tokenizers.image import Tokenizer

    calls = {"video": 0, "decoder": 0, "act": 0}

    def counted(owner: type, method: str, what: str) -> None:
        original = getattr(owner, method)

        def counting(*args: Any, **kwargs: Any) -> Any:
            calls[what] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, method, counting)

    counted(StreamingVideoDiT, "embed_frames", "video")
    counted(Tokenizer, "decode", "decoder")
    counted(WorldModel, "act", "act")
    model = WorldModel.from_preset("debug", SPEC, TASKS)
    policy = WorldModelPolicy(model, task="lift", steps=5, execute=2)
    for step in range(5):
        policy.act(see(0.01 * step))
        assert calls == {"video": step + 1, "decoder": 0, "act": step // 2 + 1}
    check_policy(policy, SPEC)
    check_policy(TemporalEnsembling(WorldModelPolicy(model, task="push")), SPEC)
    check_policy(ChunkExecution(WorldModelPolicy(model, task="push"), 3), SPEC)


def test_replay_plays_then_stays_or_complains() -> None:
    actions = np.array([[0.01, 0, 0, 1], [0.02, 0, 0, 1]], np.float32)
    policy = ReplayPolicy(actions, SPEC)
    assert np.array_equal([policy.act(see()) for _ in range(2)], actions)
    with pytest.raises(IndexError, match='after="stay"'):
        policy.act(see())
    policy.reset()
    assert np.array_equal(policy.act(see()), actions[0])
    staying = ReplayPolicy(actions, SPEC, after="stay")
    assert np.array_equal([staying.act(see()) for _ in range(4)][2:], [[0, 0, 0, 1]] * 2)
    with pytest.raises(ValueError, match="shape"):
        ReplayPolicy(np.zeros((2, 3)), SPEC)


def test_random_play_is_smooth_and_reproducible() -> None:
    policy = RandomPolicy(SPEC)
    policy.reset(seed=2)
    first = np.stack([policy.act(see()) for _ in range(24)])
    policy.reset(seed=2)
    assert np.array_equal(policy.chunk(see()).actions, first)
    assert np.corrcoef(first[:-1, :3].ravel(), first[1:, :3].ravel())[0, 1] > 0.4
    assert np.abs(first[:, :3]).max() > 0.03


def test_the_expert_needs_a_simulator_with_an_expert() -> None:
    asked = []

    def expert_action(task: str | None) -> list[float]:
        asked.append(task)
        return [0.01, 0, 0, -1]

    env = SimpleNamespace(expert_action=expert_action)
    env.unwrapped = env
    policy = ExpertPolicy(env, "push")
    check_policy(policy, SPEC)
    assert set(asked) == {"push"}
    bare = SimpleNamespace(unwrapped=SimpleNamespace())
    with pytest.raises(TypeError, match="no scripted expert"):
        ExpertPolicy(bare)


def test_importing_policies_loads_no_torch() -> None:
    code = (
        "import sys, kairos_env.policies as p; p.PlannerPolicy, p.cem, p.WorldModelPolicy, p.TemporalEnsembling;"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
