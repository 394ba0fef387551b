"""Planners find the known optimum of a small exact world, keep their promises, and run on the real model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kairos_env.policies import PLANNERS, Objective, PlannerPolicy, best_of_n, cem, check_policy, mppi, random_shooting
from kairos_env.policies.planners.action_sampling import ActionDistribution
from kairos_env.policies.planners.planning import Clock
from kairos_env.records import Camera, Field, Observation, RobotSpec

SPEC = RobotSpec(
    name="point",
    cameras=(Camera("top", 8, 8),),
    proprio=(Field("x", -1, 1, "m"), Field("y", -1, 1, "m"), Field("closed", 0, 1, "")),
    action=(
        Field("dx", -0.1, 0.1, "m", "delta_position"),
        Field("dy", -0.1, 0.1, "m", "delta_position"),
        Field("gripper", -1, 1, "", "gripper"),
    ),
    control_rate_hz=5,
    instruction="close on the target",
)
GOAL = torch.tensor([0.32, -0.21])


@dataclass(frozen=True)
class PointState:
    position: Tensor  # (B, 2)
    closed: Tensor  # (B,)
    seeds: tuple[int, ...]
    frame: int

    @property
    def batch_size(self) -> int:
        return len(self.position)

    def fork(self, count: int) -> PointState:
        return self.select([i for i in range(self.batch_size) for _ in range(count)])

    def select(self, indices: Sequence[int]) -> PointState:
        rows = list(indices)
        return PointState(self.position[rows], self.closed[rows], tuple(self.seeds[i] for i in rows), self.frame)

    def reseed(self, seeds: Sequence[int]) -> PointState:
        assert len(seeds) == self.batch_size
        return dataclasses.replace(self, seeds=tuple(seeds))


@dataclass(frozen=True)
class PointRollout:
    reward: Tensor
    success: Tensor
    uncertainty: Tensor
    proprio: Tensor
    state: PointState


class PointWorld:
    """A gripper in the plane: it must reach the goal and close there. Its policy aims badly, by seed."""

    spec = SPEC
    tasks: Mapping[str, str] = {"close": SPEC.instruction}
    chunk_length = 3

    def __init__(self, noise: float = 0.0, aim: float = 0.0, broken: bool = False) -> None:
        self.noise, self.aim, self.broken = noise, aim, broken
        self.largest_batch = 0
        self.observed: list[np.ndarray | None] = []

    def observe(self, obs: Any, state: Any = None, action: Any = None, seeds: Any = None) -> PointState:
        proprio = torch.from_numpy(np.stack([o.proprio for o in obs]))
        self.observed.append(None if action is None else np.array(action[0]))
        if state is not None:
            return PointState(proprio[:, :2], proprio[:, 2], state.seeds, state.frame + 1)
        return PointState(proprio[:, :2], proprio[:, 2], tuple(seeds), 0)

    def draw(self, state: PointState, stream: int, shape: tuple[int, ...]) -> Tensor:
        rows = [np.random.default_rng([s, state.frame, stream]).standard_normal(shape) for s in state.seeds]
        return torch.from_numpy(np.stack(rows)).float()

    def imagine(self, state: PointState, actions: Any, steps: Any = None) -> PointRollout:
        self.largest_batch = max(self.largest_batch, state.batch_size)
        actions = torch.as_tensor(actions)
        assert len(actions) == state.batch_size
        rewards, successes, proprios = [], [], []
        for t in range(actions.shape[1]):
            position = state.position + actions[:, t, :2]
            closed = (actions[:, t, 2] > 0).float()
            state = dataclasses.replace(state, position=position, closed=closed, frame=state.frame + 1)
            away = (position - GOAL).norm(dim=-1)
            success = ((away < 0.04) & (closed > 0)).float()
            # Closing early is punished, so that the gripper must change at the right moment.
            reward = torch.where(success > 0, 1.0, 0.8 - away - 0.2 * closed) + self.noise * self.draw(state, 0, ())
            rewards.append(reward * float("nan") if self.broken else reward)
            successes.append(success)
            proprios.append(torch.cat([position, closed[:, None]], -1))
        reward = torch.stack(rewards, 1)
        return PointRollout(
            reward, torch.stack(successes, 1), torch.zeros_like(reward), torch.stack(proprios, 1), state
        )

    def act(self, state: PointState, steps: Any = None) -> Tensor:
        """Towards the goal, turned by an angle drawn from the seed."""
        away = GOAL - state.position
        angle = self.aim * self.draw(state, 1, ())
        cos, sin = angle.cos(), angle.sin()
        turned = torch.stack([cos * away[:, 0] - sin * away[:, 1], sin * away[:, 0] + cos * away[:, 1]], -1)
        move = (turned / 2).clamp(-0.1, 0.1)
        grip = torch.where(away.norm(dim=-1) < 0.1, 1.0, -1.0)
        return torch.cat([move, grip[:, None]], -1)[:, None].expand(-1, self.chunk_length, -1).clone()


def observation(x: float = 0.0, y: float = 0.0) -> Observation:
    image = np.zeros((8, 8, 3), np.uint8)
    return Observation({"top": image}, np.array([x, y, 0], np.float32), SPEC.instruction)


def start(model: PointWorld, seed: int = 0) -> PointState:
    return model.observe([observation()], seeds=[seed])


def optimum(horizon: int) -> tuple[np.ndarray, float]:
    """Straight to the goal with full steps on each axis, closing on arrival: no plan can be better."""
    position, actions = np.zeros(2), []
    while len(actions) < horizon:
        move = np.clip(GOAL.numpy() - position, -0.1, 0.1)
        position = position + move
        actions.append([*move, 1.0 if np.linalg.norm(GOAL.numpy() - position) < 0.04 else -1.0])
    model = PointWorld()
    plan = np.array(actions, np.float32)
    return plan, float(Objective()(model.imagine(start(model), plan[None]))[0])


@pytest.mark.parametrize("planner", [cem, mppi])
def test_planners_find_the_optimum(planner: Any) -> None:
    _, best = optimum(8)
    plan = planner(PointWorld(), start(PointWorld()), horizon=8, population=256, iterations=6, spread=1.0, rollout=True)
    assert plan.actions.shape == (8, 3) and plan.actions.dtype == np.float32
    assert 0.96 * best < plan.value <= best + 1e-6
    assert plan.rollout.success[0, :6].any()  # after success the plan is free
    assert np.isclose(Objective()(plan.rollout)[0], plan.value)
    assert (plan.actions >= SPEC.action_low).all() and (plan.actions <= SPEC.action_high).all()


def test_cem_beats_random_shooting_with_as_many_evaluations() -> None:
    model = PointWorld()
    refined = cem(model, start(model), horizon=8, population=128, iterations=4)
    shot = random_shooting(model, start(model), horizon=8, population=512)
    assert refined.evaluations == shot.evaluations == 512
    assert refined.value > shot.value


@pytest.mark.parametrize("name", PLANNERS)
def test_a_plan_depends_on_the_seed_and_not_on_the_batch_size(name: str) -> None:
    model = PointWorld(noise=0.05, aim=1.0)
    plan, again, small = (
        PLANNERS[name](model, start(model), seed=3, samples=2, batch_size=size) for size in (64, 64, 8)
    )
    assert np.array_equal(plan.actions, again.actions) and plan.value == again.value
    assert np.array_equal(plan.actions, small.actions)
    model.largest_batch = 0
    PLANNERS[name](model, start(model), seed=3, samples=2, batch_size=8)
    assert model.largest_batch <= 8
    if name != "best_of_n":
        assert not np.array_equal(plan.actions, PLANNERS[name](model, start(model), seed=4).actions)


@pytest.mark.parametrize("name", ["cem", "mppi", "random_shooting"])
def test_a_good_first_guess_is_never_made_worse(name: str) -> None:
    guess, best = optimum(8)
    plan = PLANNERS[name](PointWorld(), start(PointWorld()), horizon=8, population=16, initial=guess)
    assert plan.value == pytest.approx(best)


def test_proposals_compete_in_the_first_round() -> None:
    good, best = optimum(8)
    plan = cem(PointWorld(), start(PointWorld()), horizon=8, population=12, iterations=1, proposals=good[None])
    assert plan.value == pytest.approx(best)


def test_deadline_returns_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(np.arange(0, 1e6, 0.1))
    monkeypatch.setattr(Clock.__init__, "__defaults__", (None, lambda: float(next(ticks))))
    guess, best = optimum(8)
    short = cem(PointWorld(), start(PointWorld()), horizon=8, deadline=0.001, batch_size=16, initial=guess)
    longer = cem(PointWorld(), start(PointWorld()), horizon=8, deadline=2.0, batch_size=16)
    full = cem(PointWorld(), start(PointWorld()), horizon=8, batch_size=16)
    assert short.evaluations == 16 and short.value == pytest.approx(best)  # one batch, the warm start in it
    assert 16 < longer.evaluations < full.evaluations
    for name in PLANNERS:
        assert np.isfinite(PLANNERS[name](PointWorld(aim=1.0), start(PointWorld()), deadline=0.0).value)


def test_a_clock_does_not_start_what_would_end_too_late() -> None:
    now = [0.0]
    clock = Clock(1.0, lambda: now[0])
    now[0] = 0.6
    clock.lap()
    assert not clock.allows_another()  # 0.6 more would end at 1.2
    assert Clock(None).allows_another()


def test_best_of_one_is_the_policy() -> None:
    model = PointWorld(aim=1.0)
    plan = best_of_n(model, start(model, 7), n=1)
    assert np.array_equal(plan.actions, model.act(start(model, 7))[0].numpy())
    assert plan.chosen == 0 and plan.evaluations == 0


def test_best_of_n_improves_a_bad_policy() -> None:
    model = PointWorld(aim=1.5)
    gains = []
    for seed in range(10):
        plan = best_of_n(model, start(model, seed), n=16, horizon=8, seed=seed)
        assert np.array_equal(plan.values.argmax(), plan.chosen) or plan.chosen == 0
        gains.append(plan.value - plan.values[0])
    assert min(gains) >= 0 and np.mean(gains) > 0.2


def test_best_of_n_keeps_the_policy_when_the_difference_is_only_noise() -> None:
    model = PointWorld(noise=0.3)  # aims perfectly: all proposals are the same, only the values' noise differs
    for seed in range(10):
        assert best_of_n(model, start(model, seed), n=8, seed=seed).chosen == 0
    jittered = [best_of_n(model, start(model, s), n=8, seed=s, jitter=0.02, samples=4).chosen for s in range(10)]
    assert jittered.count(0) >= 9  # hardly different proposals do not pass the margin


def test_best_of_n_imagines_on_with_the_policy() -> None:
    model = PointWorld(aim=0.0)
    near = best_of_n(model, start(model), n=4, horizon=3)
    far = best_of_n(model, start(model), n=4, horizon=10, commit=1)
    assert far.values[0] > near.values[0] + 3  # the policy arrives after the proposal's end


def test_success_ends_the_imagined_episode() -> None:
    reward = np.array([[0.5, 1.0, 0.0, 0.0], [0.5, 0.9, 0.9, 0.9]])
    success = np.array([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    values = Objective(discount=1.0, success_value=0.0).value(reward, success, np.zeros_like(reward))
    assert values.tolist() == pytest.approx([3.5, 3.2])  # what is imagined after success does not count
    bonus = Objective(discount=0.5, success_value=2.0).value(reward, success, np.zeros_like(reward))
    assert bonus[0] == pytest.approx(0.5 + 0.5 + 0.25 + 0.125 + 2 * 0.5)
    cautious = Objective(uncertainty_penalty=1.0).value(reward, success * 0, np.array([[0] * 4, [1] * 4]))
    assert cautious[1] < cautious[0]


def test_an_own_reward_replaces_the_models() -> None:
    left = Objective(success_value=0.0, reward=lambda roll: -roll.proprio[..., 0])
    plan = cem(PointWorld(), start(PointWorld()), horizon=4, objective=left)
    assert plan.actions[:, 0].max() < -0.08
    assert np.isfinite(best_of_n(PointWorld(), start(PointWorld()), n=2, objective=left).value)


def test_nonsense_is_refused() -> None:
    model = PointWorld()
    with pytest.raises(ValueError, match=r"state\.select"):
        cem(model, start(model).fork(2))
    with pytest.raises(ValueError, match="elites <= population"):
        cem(model, start(model), elites=50, population=10)
    with pytest.raises(ValueError, match="horizon"):
        cem(model, start(model), horizon=0)
    with pytest.raises(FloatingPointError, match="non-finite"):
        cem(PointWorld(broken=True), start(model))


def test_samples_are_smooth_bounded_and_the_gripper_is_sticky() -> None:
    flat = ActionDistribution.around(SPEC, 12, spread=0.5, smoothness=0.0, stickiness=0.0)
    smooth = ActionDistribution.around(SPEC, 12, spread=0.5, smoothness=0.8, stickiness=0.9)
    rng = np.random.default_rng(0)
    rough, gentle = flat.sample(4000, rng), smooth.sample(4000, rng)
    for actions in (rough, gentle):
        assert actions.dtype == np.float32
        assert (actions >= SPEC.action_low).all() and (actions <= SPEC.action_high).all()
        assert set(np.unique(actions[..., 2])) == {-1.0, 1.0}
        assert actions[..., 2].mean() == pytest.approx(0, abs=0.05)

    def neighbours(actions: np.ndarray) -> float:
        return float(np.corrcoef(actions[:, :-1, 0].ravel(), actions[:, 1:, 0].ravel())[0, 1])

    assert abs(neighbours(rough)) < 0.05 and neighbours(gentle) > 0.6
    assert gentle[..., 0].std() == pytest.approx(rough[..., 0].std(), rel=0.05)
    switches = [(a[:, 1:, 2] != a[:, :-1, 2]).mean() for a in (rough, gentle)]
    assert switches[1] < 0.4 * switches[0]


def test_refitting_follows_the_elites() -> None:
    prior = ActionDistribution.around(SPEC, 4)
    elite = np.tile(np.array([0.08, -0.05, 1.0], np.float32), (6, 4, 1))
    fitted = prior.fit(elite, momentum=0.0)
    assert np.allclose(fitted.mode(), elite[0])
    assert (fitted.std[:, :2] > 0).all()  # later rounds still look around
    assert fitted.sample(200, np.random.default_rng(0))[..., 2].mean() > 0.8


def test_planner_policy_acts_in_closed_loop() -> None:
    """Replans every second step, keeps the model's history without a gap, and arrives."""
    model = PointWorld()
    policy = PlannerPolicy(model, cem, task="close", execute=2, horizon=6, population=64, iterations=3)
    check_policy(policy, SPEC, observation())
    policy.reset(seed=1)
    model.observed.clear()
    position, plans, acted = np.zeros(2), [], []
    arrived = False
    while not arrived and len(acted) < 8:
        acted.append(policy.act(observation(*position)))
        plans.append(policy.plan)
        position = position + acted[-1][:2]
        arrived = np.linalg.norm(position - GOAL.numpy()) < 0.04 and acted[-1][2] > 0
    assert arrived
    assert plans[0] is plans[1] and plans[1] is not plans[2]
    assert model.observed[0] is None
    assert np.allclose(model.observed[1:], acted[:-1])


@pytest.mark.parametrize("name", PLANNERS)
def test_planners_run_on_the_world_model(name: str) -> None:
    from kairos_env.policies import example_observation
    from kairos_env.sims.tabletop.env import TASKS, make_spec
    from kairos_env.world_model.model import WorldModel

    spec = make_spec()
    model = WorldModel.from_preset("debug", spec, TASKS)
    size = {"n": 3} if name == "best_of_n" else {"population": 4}
    size |= {"elites": 2, "keep": 1} if name == "cem" else {}
    size |= {"iterations": 2} if name in ("cem", "mppi") else {}
    policy = PlannerPolicy(model, PLANNERS[name], task="push", horizon=2, batch_size=4, rollout=True, **size)
    policy.reset(seed=1)
    for _ in range(2):
        action = policy.act(example_observation(spec))
        assert action.shape == (4,) and np.isfinite(action).all()
    assert policy.plan is not None and np.isfinite(policy.plan.value)
    film = model.decode(policy.plan.rollout.latents)["scene"]
    assert film.shape == (1, len(policy.plan.actions), 64, 64, 3) and film.dtype == np.uint8


def test_planner_policy_starts_warm() -> None:
    seen: list[Any] = []

    def planner(model: Any, state: Any, *, initial: Any, **options: Any) -> Any:
        seen.append(initial)
        return cem(model, state, initial=initial, horizon=5, population=16, elites=8, **options)

    policy = PlannerPolicy(PointWorld(), planner)
    policy.act(observation())
    assert policy.plan is not None
    first = policy.plan.actions
    policy.act(observation(0.1, 0.0))
    assert seen[0] is None
    assert np.array_equal(seen[1][:4], first[1:])
    assert np.array_equal(seen[1][4], [0, 0, first[-1][2]])  # then it stays
    policy.reset()
    policy.act(observation())
    assert seen[2] is None


def test_planner_policy_with_one_proposal_is_the_policy() -> None:
    from kairos_env.policies import WorldModelPolicy

    model: Any = PointWorld(aim=1.0)
    alone = WorldModelPolicy(model, task="close", execute=2)
    chosen = PlannerPolicy(model, best_of_n, task="close", execute=2, n=1)
    for policy in (alone, chosen):
        policy.reset(seed=5)
    for x in (0.0, 0.05, 0.1, 0.2):
        assert np.array_equal(alone.act(observation(x)), chosen.act(observation(x)))
