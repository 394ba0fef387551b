"""The policy plugin under the LeRobot that is installed: found, made, saved, loaded and asked as LeRobot does it."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class
from lerobot.utils.import_utils import register_third_party_plugins

from kairos_env.policies import WorldModelPolicy
from kairos_env.records import Observation, SpecMismatch
from kairos_env.world_model.model import WorldModel

register_third_party_plugins()

TASK = "lift the red cube"


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return WorldModel.from_pretrained("kairos-tiny")


@pytest.fixture(scope="module")
def starts(model: WorldModel) -> list[Observation]:
    return [Observation(o.images, o.proprio, TASK) for o in model.starts[:3]]


def make(**options: Any) -> Any:
    """A policy as LeRobot's factory makes it: by the name of its type."""
    config = PreTrainedConfig.get_choice_class("kairos")(device="cpu", **options)
    return get_policy_class("kairos")(config)


def batch(observations: list[Observation], key: str = "observation.images.scene") -> dict[str, Any]:
    images = torch.from_numpy(np.stack([o.images["scene"] for o in observations]))
    return {
        key: images.permute(0, 3, 1, 2).float() / 255,
        "observation.state": torch.from_numpy(np.stack([o.proprio for o in observations])),
        "task": [o.instruction for o in observations],
    }


def visual(*names: str, size: int = 64) -> dict[str, PolicyFeature]:
    return {f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, size, size)) for name in names}


def test_lerobot_finds_the_type_by_the_name_of_the_distribution() -> None:
    assert "kairos" in PreTrainedConfig.get_known_choices()
    policy_class = get_policy_class("kairos")
    assert policy_class.__name__ == "KairosPolicy" and policy_class.name == "kairos"


def test_select_action_does_what_the_models_own_policy_does(model: WorldModel, starts: list[Observation]) -> None:
    policy, own = make(), WorldModelPolicy(model)
    seed = int(np.random.default_rng(0).integers(2**31))
    own.reset(seed)
    for observation in starts:
        expected = own.act(observation)
        np.testing.assert_allclose(policy.select_action(batch([observation]))[0].numpy(), expected, atol=1e-6)


def test_robots_of_a_batch_do_not_disturb_each_other(starts: list[Observation]) -> None:
    policy, alone = make(), make()
    together = [policy.select_action(batch(starts)) for _ in range(3)]
    alone._sequence = SimpleNamespace(integers=lambda *_, **__: np.random.default_rng(0).integers(2**31, size=3)[:1])
    for actions in together:
        torch.testing.assert_close(alone.select_action(batch(starts[:1])), actions[:1], atol=1e-5, rtol=0)


def test_a_chunk_is_executed_before_the_next_is_asked_for(starts: list[Observation], monkeypatch: Any) -> None:
    policy, asked = make(n_action_steps=3), []
    act = policy.model.act
    monkeypatch.setattr(policy.model, "act", lambda *a, **k: asked.append(act(*a, **k)) or asked[-1])
    given = [policy.select_action(batch(starts)) for _ in range(4)]
    assert len(asked) == 2
    for step in range(3):
        assert torch.equal(given[step], asked[0][:, step])
    assert torch.equal(given[3], asked[1][:, 0])
    policy.reset()
    policy.select_action(batch(starts))
    assert len(asked) == 3


def test_predict_action_chunk_needs_no_history(model: WorldModel, starts: list[Observation]) -> None:
    policy = make()
    before = policy.predict_action_chunk(batch(starts))
    policy.select_action(batch(starts))
    assert before.shape == (3, model.chunk_length, model.spec.action_dim) and before.dtype == torch.float32
    assert torch.equal(before, policy.predict_action_chunk(batch(starts)))
    low, high = torch.tensor(model.spec.action_low), torch.tensor(model.spec.action_high)
    assert (before >= low - 1e-6).all() and (before <= high + 1e-6).all()


def test_another_number_of_robots_needs_a_reset(starts: list[Observation]) -> None:
    policy = make()
    policy.select_action(batch(starts))
    with pytest.raises(ValueError, match=r"reset\(\)"):
        policy.select_action(batch(starts[:2]))
    policy.reset()
    assert policy.select_action(batch(starts[:2])).shape == (2, 4)


def test_the_task_decides(starts: list[Observation]) -> None:
    policy = make()
    lift = policy.predict_action_chunk(batch(starts))
    reach = policy.predict_action_chunk(batch(starts) | {"task": ["move the gripper to the red cube"] * 3})
    assert not torch.allclose(lift, reach, atol=1e-3)
    told = make(instruction="move the gripper to the red cube").predict_action_chunk(batch(starts))
    assert torch.equal(told, reach)
    with pytest.raises(ValueError, match="--policy.instruction"):
        policy.predict_action_chunk(batch(starts) | {"task": [""] * 3})


def test_features_follow_from_the_robot() -> None:
    config = make().config
    assert {key: f.shape for key, f in config.input_features.items()} == {
        "observation.images.scene": (3, 64, 64),
        "observation.state": (4,),
    }
    assert config.output_features["action"].shape == (4,)


def test_a_lone_camera_of_any_name_and_size_is_taken(starts: list[Observation]) -> None:
    policy = make(input_features=visual("top", size=128))
    assert policy.config.input_features["observation.images.top"].shape == (3, 128, 128)
    big = batch(starts, "observation.images.top")
    big["observation.images.top"] = big["observation.images.top"].repeat_interleave(2, -1).repeat_interleave(2, -2)
    near = make().predict_action_chunk(batch(starts))
    torch.testing.assert_close(policy.predict_action_chunk(big), near, atol=0.1, rtol=0)


def test_what_does_not_fit_is_said(starts: list[Observation]) -> None:
    with pytest.raises(SpecMismatch, match="which of .*top.*--policy.features"):
        make(input_features=visual("top", "side"))
    with pytest.raises(SpecMismatch, match=r"\(6,\).*eef_x.*--policy.features"):
        make(input_features={"observation.state": PolicyFeature(FeatureType.STATE, (6,))})
    with pytest.raises(SpecMismatch, match=r"\(7,\).*dx"):
        make(output_features={"action": PolicyFeature(FeatureType.ACTION, (7,))})
    with pytest.raises(ValueError, match="n_action_steps is 9"):
        make(n_action_steps=9)
    policy = make()
    given = batch(starts)
    with pytest.raises(KeyError, match="observation.state"):
        policy.select_action({k: v for k, v in given.items() if k != "observation.state"})
    with pytest.raises(ValueError, match="normalised already"):
        policy.select_action(given | {"observation.images.scene": given["observation.images.scene"] * 255})


def test_a_map_says_which_feature_is_what(tmp_path: Path, starts: list[Observation]) -> None:
    plain = make()
    data = json.loads(plain.features.to_json())
    data["cameras"][0] |= {"feature": "observation.images.front", "rotate": 180}
    for scalar, index in zip(data["proprio"], (5, 4, 3, 2), strict=True):
        scalar["index"] = index
    for scalar, index in zip(data["action"], (3, 0, 1, 2), strict=True):
        scalar["index"] = index
    (tmp_path / "map.json").write_text(json.dumps(data))
    policy = make(features=str(tmp_path / "map.json"))
    given = batch(starts)
    turned = {
        "observation.images.front": given["observation.images.scene"].flip(-1, -2),
        "observation.state": torch.cat([torch.zeros(3, 2), given["observation.state"].flip(-1)], -1),
        "task": given["task"],
    }
    expected = plain.predict_action_chunk(given)[..., [1, 2, 3, 0]]
    assert torch.equal(policy.predict_action_chunk(turned), expected)


def test_saved_and_loaded_policies_are_equal(tmp_path: Path, starts: list[Observation]) -> None:
    policy = make(n_action_steps=2, instruction=TASK)
    policy.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["type"] == "kairos"
    assert str(tmp_path) not in (tmp_path / "config.json").read_text()
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    loaded = get_policy_class("kairos").from_pretrained(moved)
    assert loaded.config.n_action_steps == 2 and loaded.config.instruction == TASK and not loaded.training
    assert torch.equal(loaded.predict_action_chunk(batch(starts)), policy.predict_action_chunk(batch(starts)))
    WorldModel.from_pretrained(moved / "model")  # Kairos loads it as well
    loaded.save_pretrained(moved / "again")
    assert (moved / "again" / "config.json").read_text() == (moved / "config.json").read_text()


def test_lerobot_does_not_train_it(starts: list[Observation]) -> None:
    policy = make()
    for call in (lambda: policy.forward(batch(starts)), policy.get_optim_params, policy.config.get_optimizer_preset):
        with pytest.raises(NotImplementedError, match="kairos train"):
            call()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy folder written by the command."""
    path = tmp_path_factory.mktemp("policy") / "kairos"
    command = [sys.executable, "-m", "lerobot_policy_kairos", "kairos-tiny", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "observation.images.scene" in done.stdout
    return path


def test_lerobot_controls_a_robot_with_it(folder: Path, tmp_path: Path) -> None:
    """By the command of this version of LeRobot: ``lerobot-rollout``, or in 0.4 ``lerobot-record``."""
    task, four_seconds = "move the gripper to the red cube", "4"
    if importlib.util.find_spec("lerobot.rollout"):
        command = "lerobot_rollout"
        options = [f"--task={task}", "--fps=5", f"--duration={four_seconds}", "--return_to_initial_position=false"]
    else:
        command = "lerobot_record"
        options = [
            f"--dataset.single_task={task}",
            "--dataset.repo_id=somebody/eval_reach",
            f"--dataset.root={tmp_path / 'data'}",
            "--dataset.fps=5",
            f"--dataset.episode_time_s={four_seconds}",
            "--dataset.num_episodes=1",
            "--dataset.push_to_hub=false",
        ]
    code = f"import simulated_robot; from lerobot.scripts.{command} import main; main()"
    robot = ["--robot.type=simulated_panda", f"--robot.log={tmp_path / 'log.json'}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *robot, f"--policy.path={folder}", *options, "--play_sounds=false"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_LEROBOT_HOME": str(tmp_path / "home"), "PYTHONPATH": str(Path(__file__).parent)},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    log = json.loads((tmp_path / "log.json").read_text())
    assert log["success"] and 5 <= log["steps"] <= 21


def test_the_asynchronous_server_serves_it(
    folder: Path, starts: list[Observation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("grpc")
    monkeypatch.chdir(tmp_path)  # LeRobot writes its logs into the working directory
    from lerobot.async_inference.configs import PolicyServerConfig
    from lerobot.async_inference.helpers import RemotePolicyConfig, TimedObservation
    from lerobot.async_inference.policy_server import PolicyServer
    from lerobot_policy_kairos.async_server import allow_kairos

    allow_kairos()
    names = ["x", "y", "z", "width"]
    features = {
        "observation.state": {"dtype": "float32", "shape": (4,), "names": names},
        "observation.images.scene": {"dtype": "image", "shape": (64, 64, 3), "names": ["height", "width", "channels"]},
    }
    server = PolicyServer(PolicyServerConfig(fps=5))
    client = SimpleNamespace(peer=lambda: "test")
    server.Ready(None, client)
    wanted = RemotePolicyConfig("kairos", str(folder), features, actions_per_chunk=3, device="cpu")
    server.SendPolicyInstructions(SimpleNamespace(data=pickle.dumps(wanted)), client)
    robot = dict(zip(names, starts[0].proprio.tolist(), strict=True)) | {
        "scene": starts[0].images["scene"],
        "task": TASK,
    }
    server._enqueue_observation(TimedObservation(timestamp=0.0, timestep=7, observation=robot, must_go=True))
    actions = pickle.loads(server.GetActions(None, client).data)
    assert [a.get_timestep() for a in actions] == [7, 8, 9]
    expected = make().predict_action_chunk(batch(starts[:1]))[0, :3]
    torch.testing.assert_close(torch.stack([a.get_action() for a in actions]), expected)
