"""`WorldModelPolicy` over miniatures of the published weights, against its steps written out."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from released_models import released_model, see, statistics
from torch import Tensor

from kairos_env.env import WorldModelEnv
from kairos_env.policies import WorldModelPolicy, check_policy
from kairos_env.policies.make import make_policy, robot_of
from kairos_env.records import Array, Observation, SpecMismatch
from kairos_env.world_model.model import WorldModel
from kairos_env.world_model.normalisation import Normaliser
from kairos_env.world_model.published.releases import miniature
from kairos_env.world_model.published.robot_part import RobotPart
from kairos_env.world_model.published.robot_settings import LIBERO, ROBOTWIN, RobotSettings, compose
from kairos_env.world_model.published.world_action import WorldActionModel
from kairos_env.world_model.text.context import Context


class Words:
    """Context tokens that depend on the prompt and, where one is given, on the picture; counts its calls."""

    text_dim = 48

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], list[Array | None]]] = []

    def encode(self, prompts: Sequence[str], images: Sequence[Array | None] | None = None) -> Context:
        pictures = list(images or [None] * len(prompts))
        self.calls.append((list(prompts), pictures))
        rows = []
        for prompt, picture in zip(prompts, pictures, strict=True):
            generator = torch.Generator().manual_seed(zlib.crc32(prompt.encode()))
            tokens = torch.randn(1, 3 + len(prompt) % 4, self.text_dim, generator=generator)
            rows.append(Context(tokens + (0 if picture is None else float(picture.mean()) / 255)))
        return Context.cat(rows)


class Pixels:
    """Averages of 8 x 8 pixels of every fourth picture, spread over 16 channels."""

    channels, spatial, temporal = 16, 8, 4

    def __init__(self) -> None:
        self.spread = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))

    def encode_video(self, video: Tensor) -> Tensor:
        means = torch.nn.functional.avg_pool3d(video.movedim(2, 1), (1, 8, 8))[:, :, ::4]
        return torch.einsum("cx,bxfhw->bfchw", self.spread, means)

    def decode_video(self, latents: Tensor) -> Tensor:
        raise AssertionError("a policy decodes nothing")


def make(
    settings: RobotSettings, stats: Mapping[str, Any] | None = None, seed: int = 0, stepwise: bool = False
) -> tuple[WorldModel, Words, Pixels]:
    """The release of full-size canvases with few and narrow layers."""
    words, pixels = Words(), Pixels()
    clips = WorldActionModel.from_release(miniature(settings.release, layers=4), seed, tokenizer=pixels, encoder=words)
    normaliser = Normaliser.from_statistics(stats or statistics(settings), settings.normalisation, stepwise)
    return WorldModel.of_clips(clips, RobotPart(settings, normaliser)), words, pixels


def policy(settings: RobotSettings, stats: Mapping[str, Any] | None = None, **options: Any) -> WorldModelPolicy:
    return WorldModelPolicy(make(settings, stats)[0], **{"steps": 2, **options})


@pytest.mark.parametrize("settings", [LIBERO, ROBOTWIN], ids=["libero", "robotwin"])
@pytest.mark.parametrize("mode", ["policy", "joint"])
def test_it_is_a_policy(settings: RobotSettings, mode: Any) -> None:
    check_policy(policy(settings, mode=mode, steps=1), settings.spec, see(settings))


@pytest.mark.parametrize("settings", [LIBERO, ROBOTWIN], ids=["libero", "robotwin"])
def test_a_chunk_is_its_steps_written_out(settings: RobotSettings) -> None:
    stats = statistics(settings)
    whole, words, pixels = make(settings, stats)
    model, spoken = whole.clips, WorldModelPolicy(whole, steps=3, noise_seed=11)
    observation = see(settings)
    chunk = spoken.chunk(observation).actions

    prompt = "A video recorded from a robot's point of view executing the following instruction: pick up the bowl"
    ((prompts, pictures),) = words.calls
    canvas = compose(settings, observation.images)
    assert prompts == [prompt]
    if settings is ROBOTWIN:
        np.testing.assert_array_equal(pictures[0], canvas)
    else:
        assert pictures == [None]

    # proprioception as the last context token, the video once, three Euler steps under the shift 5
    state = stats["state"]["default"]
    if settings is LIBERO:
        low, high = np.array(state["global_min"]), np.array(state["global_max"])
        normal = 2 * (observation.proprio - low) / (high - low) - 1
    else:
        normal = (observation.proprio - np.array(state["global_mean"])) / np.array(state["global_std"])
    context = model.condition(words.encode([prompt], pictures), torch.tensor(normal[None], dtype=torch.float32))
    video = torch.from_numpy(canvas).permute(2, 0, 1)[None, None] / 127.5 - 1
    cache = model.prefill(pixels.encode_video(video), context)
    x = torch.randn(32, settings.spec.action_dim, generator=torch.Generator().manual_seed(11))[None]
    levels = [5 * s / (1 + 4 * s) for s in (1, 2 / 3, 1 / 3, 0)]
    for now, then in zip(levels[:-1], levels[1:], strict=True):
        x = x + (then - now) * model.action_velocity(x, torch.tensor([now]), context, cache)

    action = stats["action"]["default"]
    if settings is LIBERO:
        low, high = np.array(action["global_min"]), np.array(action["global_max"])
        want = (x[0].numpy() + 1) / 2 * (high - low) + low
    else:
        want = x[0].numpy() * np.array(action["global_std"]) + np.array(action["global_mean"])
    want = np.clip(want, settings.spec.action_low, settings.spec.action_high)
    if settings is LIBERO:
        want[:, 6] = np.where(want[:, 6] > 0, 1, -1)
    np.testing.assert_allclose(chunk, want, atol=2e-4)
    assert np.ptp(chunk, 0).max() > 0.1  # it says something


def test_a_batch_says_what_each_would_say_alone() -> None:
    model = make(ROBOTWIN)[0]
    policies = [WorldModelPolicy(model, steps=2) for _ in range(3)]
    seen = [see(ROBOTWIN, i, instruction) for i, instruction in enumerate(["stack", "push the red block", "wait"])]
    together = WorldModelPolicy.act_together(policies, seen, 4)
    for action, observation in zip(together, seen, strict=True):
        np.testing.assert_allclose(action, WorldModelPolicy(model, steps=2).act(observation), atol=1e-4)
    assert not np.allclose(together[0], together[1], atol=1e-3)


def test_everything_that_is_observed_matters() -> None:
    spoken, one = policy(LIBERO), see(LIBERO)
    said = spoken.chunk(one).actions[:, :6]
    dark = {name: image * 0 for name, image in one.images.items()}
    for other in (
        dataclasses.replace(one, images=dark),
        dataclasses.replace(one, proprio=-one.proprio),
        dataclasses.replace(one, instruction="close the drawer"),
    ):
        assert np.abs(spoken.chunk(other).actions[:, :6] - said).max() > 1e-4


@pytest.mark.parametrize("settings", [LIBERO, ROBOTWIN], ids=["libero", "robotwin"])
def test_it_looks_again_after_so_many_actions(settings: RobotSettings) -> None:
    model, words, _ = make(settings)
    spoken = WorldModelPolicy(model, steps=1)
    replan = 10 if settings is LIBERO else 24
    seen = [see(settings, i) for i in range(2)]
    done = [spoken.act(seen[i // replan]) for i in range(replan + 1)]
    assert len(words.calls) == 2  # between decisions nothing is encoded: such weights have no history
    np.testing.assert_array_equal(done[:replan], spoken.chunk(seen[0]).actions[:replan])  # the same noise again
    np.testing.assert_array_equal(done[replan], spoken.chunk(seen[1]).actions[0])
    spoken.reset()
    before = len(words.calls)
    spoken.act(seen[0])
    assert len(words.calls) == before + 1  # the queue did not survive


def test_whose_seed_it_is() -> None:
    def said(spoken: WorldModelPolicy, settings: RobotSettings, seed: int | None) -> Array:
        spoken.reset(seed)
        return spoken.act(see(settings))

    libero, robotwin = policy(LIBERO), policy(ROBOTWIN)
    np.testing.assert_array_equal(said(libero, LIBERO, 1), said(libero, LIBERO, 2))  # published: 50, always
    np.testing.assert_array_equal(said(libero, LIBERO, 1), said(policy(LIBERO, noise_seed=50), LIBERO, 1))
    assert not np.array_equal(said(robotwin, ROBOTWIN, 1), said(robotwin, ROBOTWIN, 2))
    np.testing.assert_array_equal(said(robotwin, ROBOTWIN, 1), said(robotwin, ROBOTWIN, 1))
    assert not np.array_equal(said(robotwin, ROBOTWIN, None), said(robotwin, ROBOTWIN, None))
    assert not np.array_equal(said(policy(LIBERO, noise_seed=3), LIBERO, 1), said(libero, LIBERO, 1))


def test_joint_mode_says_the_same_unless_actions_see_the_future() -> None:
    seen = see(LIBERO)
    alone, joint = (policy(LIBERO, mode=mode).chunk(seen).actions for mode in ("policy", "joint"))
    np.testing.assert_allclose(joint, alone, atol=1e-4)
    foreseeing = policy(LIBERO, mode="joint", actions_see_future=True).chunk(seen).actions
    assert np.abs(foreseeing[:, :6] - alone[:, :6]).max() > 1e-3


def test_actions_stay_in_their_bounds_and_the_gripper_is_all_or_none() -> None:
    wide = statistics(LIBERO)
    wide["action"]["default"] |= {"global_min": [-100.0] * 7, "global_max": [100.0] * 7}
    spoken = policy(LIBERO, wide)
    chunk = spoken.chunk(see(LIBERO)).actions
    assert np.abs(chunk).max() <= 1 and (np.abs(chunk[:, :6]) == 1).any()
    assert set(np.unique(chunk[:, 6])) <= {-1.0, 1.0}
    assert not set(np.unique(policy(ROBOTWIN).chunk(see(ROBOTWIN)).actions[:, ROBOTWIN.gripper])) <= {0.0, 1.0}


def test_step_wise_statistics() -> None:
    stats = statistics(LIBERO)
    entries = stats["action"]["default"]
    ramp = np.linspace(0.5, 1, 32)[:, None] * np.ones(7)
    entries |= {"stepwise_min": (-ramp).tolist(), "stepwise_max": ramp.tolist()}
    said = {
        stepwise: WorldModelPolicy(make(LIBERO, stats, stepwise=stepwise)[0], steps=2).chunk(see(LIBERO)).actions[:, :6]
        for stepwise in (False, True)
    }
    inside = np.abs(said[True]) < 1
    np.testing.assert_allclose(said[True][inside], (said[False] * ramp[:, :6] / 0.5)[inside], rtol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_action_leaves_that_is_not_finite(bad: float) -> None:
    spoken = policy(LIBERO)
    with torch.no_grad():
        spoken.model.mixture.action_dit.head.weight.fill_(bad)
    with pytest.raises(ValueError, match="'4b-libero.*' proposed a non-finite action; nothing is sent"):
        spoken.act(see(LIBERO))


def test_observations_of_another_robot() -> None:
    spoken = policy(LIBERO)
    with pytest.raises(SpecMismatch, match="libero-panda"):
        spoken.act(see(ROBOTWIN))
    with pytest.raises(ValueError, match="needs an instruction"):
        spoken.act(see(LIBERO, instruction=""))


def test_parts_that_do_not_belong_together() -> None:
    model = make(LIBERO)[0]
    robotwin = Normaliser.from_statistics(statistics(ROBOTWIN), "z-score")
    with pytest.raises(ValueError, match="'robotwin' do not fit the model '4b-libero"):
        WorldModel.of_clips(model.clips, RobotPart(ROBOTWIN, robotwin))
    with pytest.raises(ValueError, match=r"state \(14,\) and action \(14,\), but 'libero' needs \(8,\) and \(7,\)"):
        WorldModel.of_clips(model.clips, RobotPart(LIBERO, robotwin))
    for options, says in (
        ({"mode": "idm"}, "unknown mode 'idm'; legal: policy, joint"),
        ({"actions_see_future": True}, "only mode='joint'"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"execute": 33}, "proposes 32 actions at a time, cannot execute 33"),
        ({"execute": 0}, "execute must be >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=says):
            WorldModelPolicy(model, **options)  # type: ignore[arg-type]


def test_made_by_name_for_the_robot_and_for_its_imagination(tmp_path: Path) -> None:
    model = released_model(LIBERO)
    model.save_pretrained(tmp_path / "m")
    folder, spec = str(tmp_path / "m"), model.spec
    assert robot_of("policy", folder) == spec and robot_of("cem", folder) == model.imagined_spec
    (tmp_path / "stats.json").write_text(json.dumps(statistics(LIBERO)))
    robot: Any = SimpleNamespace(robot_spec=spec)
    robot.unwrapped = robot
    for name in ("policy(steps=1)", f"4b(statistics={tmp_path / 'stats.json'};steps=1)"):
        action = make_policy(name, robot, folder).act(see(model.interface.settings))  # type: ignore[attr-defined]
        assert action.shape == (7,) and np.abs(action).max() <= 1
    env = WorldModelEnv(model, steps=1, task="bowl")
    with pytest.raises(SpecMismatch, match="control"):
        make_policy("policy", env, folder)
    planner = make_policy("random_shooting(population=2;horizon=1;samples=1)", env, folder)
    observation, _ = env.reset(seed=0)
    assert env.step(planner.act(Observation.from_gym(observation, "pick up the bowl")))[0] in env.observation_space
