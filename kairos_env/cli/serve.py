"""`kairos serve`: a policy for clients on this or another computer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kairos_env.cli.options import Fields
from kairos_env.policies import example_observation
from kairos_env.policies.make import make_policy, parse_name, weights_of
from kairos_env.policies.remote.deployment import ZenohDeployment
from kairos_env.policies.remote.groot import GrootEndpoint
from kairos_env.policies.remote.lerobot import LeRobotInference
from kairos_env.policies.remote.server import PolicyServer, ServeConfig, read_token
from kairos_env.records import RobotSpec

if TYPE_CHECKING:
    from kairos_env.policies.policy import Policy


@dataclass(frozen=True)
class ServedRobot:
    """Stands for the environment that policies are made for: nothing but the robot."""

    robot_spec: RobotSpec

    @property
    def unwrapped(self) -> ServedRobot:
        return self


def run(
    config: Fields[ServeConfig],
    policy: str = "policy",
    model: str = "kairos-tiny",
    device: str = "cpu",
    execute: int | None = None,
    groot_port: int | None = None,
    lerobot: str = "",
    deployment: str = "kairos",
    semantics: str = "",
    zenoh_config: str = "",
    dream: str = "",
) -> int:
    """Serves until Ctrl-C or SIGTERM, then answers what is in work.

    Args:
        policy: what acts: policy, a planner such as cem(horizon=8), 4b(statistics=FILE), or module:factory.
        model: bundled name or model folder; its robot is served.
        device: cpu, cuda, ...
        execute: actions of a chunk that clients are told to execute before they ask again; by default the policy's.
        groot_port: also answer GR00T's clients over ZeroMQ, usually at 5555; 0 is a free port.
        lerobot: also answer `lerobot-rollout --inference.type=remote` over Zenoh here, such as tcp/127.0.0.1:7447.
        deployment: the name that LeRobot's robots ask for.
        semantics: what LeRobot's robots must say their numbers mean; by default the robot's name.
        zenoh_config: Zenoh's own configuration (JSON5), with TLS and access control if others can reach ``lerobot``.
        dream: also serve a robot inside the world model over Zenoh here, such as tcp/127.0.0.1:7448, for LeRobot's
            `--robot.type=remote` and `--env.type=sim`.
    """
    token = read_token(config, os.environ)
    server = make_server(config, policy, model, device, execute, token)
    transports: list[Transport] = []
    if groot_port is not None:
        transports.append(lambda: _groot(GrootEndpoint(server, groot_port, token)))
    if lerobot:
        transports.append(lambda: _lerobot(server, lerobot, deployment, semantics, zenoh_config))
    if dream:
        transports.append(lambda: _dream(model, device, dream, semantics, zenoh_config))
    asyncio.run(_serve(server, transports))
    return 0


def make_server(
    config: ServeConfig, policy: str, model: str, device: str = "cpu", execute: int | None = None, token: str = ""
) -> PolicyServer:
    """The server of a policy by its name; loads the model.

    Raises:
        ValueError: a policy that cannot be served.
    """
    from kairos_env.world_model.checkpoint import read_robot, resolve

    base = parse_name(policy)[0]
    if base in ("expert", "replay", "state_cem", "remote"):
        raise ValueError(f"{base!r} needs a simulator beside it and cannot be served")
    robot = ServedRobot(read_robot(resolve(model)))

    def make() -> Policy:
        return make_policy(policy, robot, model, device, execute=execute)

    first: Any = make()
    chunk = len(first.chunk(example_observation(robot.robot_spec)))  # also warms the model up
    about = {
        "protocol": 1,
        "policy": policy,
        "model": model,
        "weights": weights_of(policy, model, ""),
        "execute": min(int(getattr(first, "execute", 1)), chunk),
        "chunk": chunk,
        "continues": hasattr(first, "continue_chunk"),
        "remembers": hasattr(first, "follow") and not getattr(first, "fresh", False),
    }
    return PolicyServer(make, robot.robot_spec, about, config, token)


Transport = Callable[[], contextlib.AbstractAsyncContextManager[None]]


@contextlib.asynccontextmanager
async def _groot(endpoint: GrootEndpoint) -> AsyncIterator[None]:
    async with endpoint.running():
        print(f"GR00T's clients: tcp://{endpoint.server.config.host}:{endpoint.port}", flush=True)
        yield


@contextlib.asynccontextmanager
async def _zenoh(start: Callable[[], ZenohDeployment[Any]], told: Callable[[Any], str]) -> AsyncIterator[None]:
    service = await asyncio.to_thread(start)
    print(told(service), flush=True)
    try:
        yield
    finally:
        await asyncio.to_thread(service.close)


def _lerobot(server: PolicyServer, *options: str) -> contextlib.AbstractAsyncContextManager[None]:
    loop = asyncio.get_running_loop()
    return _zenoh(
        lambda: LeRobotInference(server, loop, *options),
        lambda service: (
            f"LeRobot: lerobot-rollout --inference.type=remote --inference.endpoint={options[0]} "
            f"--inference.deployment={service.deployment} --inference.semantics={service.semantics}"
        ),
    )


def _dream(
    model: str, device: str, endpoint: str, semantics: str, zenoh_config: str
) -> contextlib.AbstractAsyncContextManager[None]:
    from kairos_env.play.dream_robot import DreamServer
    from kairos_env.world_model.model import WorldModel

    def start() -> DreamServer:
        # a model of its own: the policies' is used by another thread
        world_model = WorldModel.from_pretrained(model, device=device)
        return DreamServer(world_model, endpoint, semantics=semantics, config_file=zenoh_config)

    return _zenoh(start, lambda service: f"A robot inside the world model: {endpoint}, deployment default")


async def _serve(server: PolicyServer, transports: Sequence[Transport] = ()) -> None:
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(server.running())
        for transport in transports:
            await stack.enter_async_context(transport())
        config = server.config
        address = f"{'wss' if config.certificate else 'ws'}://{config.host}:{server.port}"
        print(f"Serving {server.about['policy']} for {server.spec.name!r} at {address}", flush=True)
        print("Its health: /healthz, /readyz, /metrics. Ctrl-C stops.", flush=True)
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):  # in place of those of the command line, which interrupt at once
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await stop.wait()
        print("Stopping: requests in work are answered first.", flush=True)
