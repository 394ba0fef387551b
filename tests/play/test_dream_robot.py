"""LeRobot's env-server protocol v1 around the world model, by a client written from the rules of its own."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from serving import SPEC, free_port
from zenoh_client import ZenohClient

from kairos_env.play.dream_robot import DreamServer
from kairos_env.play.dream_world import describe
from kairos_env.policies.remote.lerobot_wire import require_feature
from kairos_env.sims.tabletop.env import make_spec
from kairos_env.world_model.model import WorldModel

ROOT = "lerobot/env/v1/deployments/default"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    found = f"tcp/127.0.0.1:{free_port()}"
    server = DreamServer(WorldModel.from_pretrained("kairos-tiny"), found, steps=3)
    yield found
    server.close()


class Client(ZenohClient):
    """What LeRobot's EnvClient does, and what it checks."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        self.count, self.last = 0, 0
        self.instance = (body := self.told(f"{ROOT}/describe", "describe", {}))["instance"]
        self.descriptor = body["descriptor"]

    def told(self, key: str, kind: str, body: dict[str, Any], request: str = "") -> dict[str, Any]:
        """The body of an answer, once it has been checked."""
        found = self.query(key, kind, body, request)
        assert found.session_id == self.identity
        if found.message_type != "error":
            assert found.message_type == ("ack" if self.identity else "accepted")
            if "result" in found.body:
                self.check(found.body["result"])
            if "execution" in found.body:
                self.check_execution(found.body["execution"])
        return dict(found.body)

    def open(self, count: int, clock: str, **more: Any) -> dict[str, Any]:
        self.count = count
        request = {"num_envs": count, "clock": clock, "task_group": None, "task_id": 0, "seeds": None} | more
        body = self.told(f"{ROOT}/instances/{self.instance}/open", "open", request)
        if "session" in body:
            assert body["descriptor"] == self.descriptor
            self.identity, self.generation = body["session"], body["generation"]
            self.key = f"{ROOT}/instances/{self.instance}/sessions/{self.identity}"
            self.token = self.session.liveliness().declare_token(f"{self.key}/client_alive")
        return body

    def ask(self, operation: str, request: str = "", **body: Any) -> dict[str, Any]:
        direct = operation in ("reset", "step")
        key = f"{self.key}/{operation if direct else 'control'}"
        found = self.told(key, "control", body if direct else body | {"operation": operation}, request)
        self.generation = found.get("generation", self.generation)
        return found

    def check(self, result: dict[str, Any]) -> None:
        assert set(result["obs"]) == {feature["name"] for feature in self.descriptor["features"]}
        for feature in self.descriptor["features"]:
            require_feature(result["obs"][feature["name"]], feature, (self.count,))
        dtypes = {"reward": "float32", "step": "int64"} | dict.fromkeys(
            ("terminated", "truncated", "is_success"), "bool"
        )
        for name, dtype in dtypes.items():
            assert result[name].shape == (self.count,) and result[name].dtype.name == dtype, name
        assert len(result["task"]) == self.count and all(isinstance(task, str) for task in result["task"])
        assert result["sim_time"] >= 0

    def check_execution(self, execution: dict[str, Any]) -> None:
        require_feature(execution["applied"], self.descriptor["action_feature"], (self.count,))
        assert execution["advanced"].dtype == np.bool_ and execution["advanced"].shape == (self.count,)
        assert 0 <= execution["started_at"] <= execution["completed_at"]
        assert execution["generation"] == self.generation and execution["sequence"] >= self.last
        self.last = execution["sequence"]

    def close(self) -> None:
        if self.identity:
            self.ask("close")
        self.leave()


@pytest.fixture
def client(endpoint: str) -> Iterator[Client]:
    found = Client(endpoint)
    yield found
    found.close()


def test_lockstep_as_lerobot_eval_steps_it(client: Client) -> None:
    assert client.descriptor["sim_type"] == "kairos" and client.descriptor["control"] == "delta"
    assert client.descriptor["clocks"] == ["lockstep", "realtime"] and client.descriptor["fps"] == 5
    first = client.open(2, "lockstep", seeds=[3, 4])["result"]
    assert first["task"][0] == client.descriptor["tasks"]["kairos"][0] and first["step"].tolist() == [0, 0]
    actions = np.zeros((2, 4), np.float32)
    actions[:, 0] = 0.05
    for count in (1, 2, 3):
        body = client.ask("step", actions=actions, n_ticks=1)
        assert body["result"]["step"].tolist() == [count, count]
        assert body["execution"]["advanced"].all() and np.array_equal(body["execution"]["applied"], actions)
    assert (body["result"]["obs"]["observation.uncertainty"] > 0).all()
    assert body["result"]["truncated"].all() and body["result"]["sim_time"] == pytest.approx(0.6)
    moved = body["result"]["obs"]["observation.state"][:, 0] - first["obs"]["observation.state"][:, 0]
    assert (moved > 0.01).all()

    after = client.ask("step", actions=actions)  # over: they stay as they ended
    assert not after["execution"]["advanced"].any() and not after["execution"]["applied"].any()
    for name, column in after["result"]["obs"].items():
        assert np.array_equal(column, body["result"]["obs"][name])

    again = client.ask("reset", seeds=[3], env_ids=[0])
    assert again["generation"] == 1
    assert again["result"]["truncated"].tolist() == [False, True] and again["result"]["step"].tolist() == [0, 3]
    for name, column in again["result"]["obs"].items():
        # the same seed, the same start, but for the last bits, which depend on how many are observed together
        np.testing.assert_allclose(column[0], first["obs"][name][0], rtol=1e-4)
    (frame, _) = client.ask("render")["frames"]
    assert frame.dtype == np.uint8 and frame.ndim == 3


def test_realtime_as_lerobot_rollout_drives_it(client: Client) -> None:
    client.open(1, "realtime")
    began = time.monotonic()
    push = np.array([[0.05, 0, 0, 1]], np.float32)
    body = client.ask("apply", actions=push, timeout_s=30)
    assert np.array_equal(body["execution"]["applied"], push)
    body = client.ask("snapshot")
    assert body["result"]["step"][0] >= 1
    held = client.ask("hold")["applied"]
    assert held[0, :3].tolist() == [0, 0, 0] and held[0, 3] == 1  # still, the gripper as it was
    assert client.ask("pause") == {}
    assert client.ask("apply", actions=push)["code"] == "busy"
    still = client.ask("snapshot")["result"]["step"][0]
    time.sleep(0.5)
    assert client.ask("snapshot")["result"]["step"][0] == still
    assert client.ask("resume") == {} and time.monotonic() - began < 60
    assert client.ask("step", actions=push)["code"] == "unsupported"


def test_nothing_is_done_twice_or_by_strangers(endpoint: str, client: Client) -> None:
    refusals: tuple[tuple[dict[str, Any], str], ...] = (
        ({"num_envs": 99}, "incompatible"),
        ({"clock": "sidereal"}, "incompatible"),
        ({"task_id": 99}, "incompatible"),
        ({"task_group": "other"}, "incompatible"),
        ({"seeds": ["x"]}, "malformed"),
    )
    for wrong, code in refusals:
        assert client.open(1, wrong.pop("clock", "lockstep"), **wrong)["code"] == code, code
    client.open(1, "lockstep")
    other = Client(endpoint)
    assert other.open(1, "lockstep")["code"] == "busy"
    other.identity = ""
    other.close()
    actions = np.zeros((1, 4), np.float32)
    client.ask("step", request="once", actions=actions)
    assert client.ask("step", request="once", actions=actions)["code"] == "stale"
    assert client.ask("step", actions=np.zeros((1, 3), np.float32))["code"] == "incompatible"
    assert client.ask("step", actions=actions, n_ticks=5)["code"] == "unsupported"
    assert client.ask("fly")["code"] == "unsupported"
    assert client.ask("snapshot")["result"]["step"].tolist() == [1]


def test_absolute_goals_need_the_joints_that_are_seen() -> None:
    arm = dataclasses.replace(SPEC, cameras=make_spec().cameras)
    found = describe(WorldModel.from_preset("debug", arm, {"wave": "wave"}), "joints", 10)
    assert found["control"] == "position" and found["gripper_indices"] == []
    blind = dataclasses.replace(arm, proprio=arm.proprio[:1])
    with pytest.raises(ValueError, match="must have b"):
        describe(WorldModel.from_preset("debug", blind, {"wave": "wave"}), "joints", 10)
