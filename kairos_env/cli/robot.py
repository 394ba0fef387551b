"""`kairos robot`: robots that LeRobot drives, real ones and fakes. All that is sent passes the safety layer."""

from __future__ import annotations

import glob
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from kairos_env.cli.options import Fields, Positional
from kairos_env.cli.robot_session import Guarded, Opening, arm, opened, play
from kairos_env.cli.values import print_json
from kairos_env.datasets.layouts import open_recording
from kairos_env.policies.make import make_policy, robot_of
from kairos_env.policies.policy import begin
from kairos_env.records import Array, Observation, RobotSpec
from kairos_env.sims.robot.env import read_object
from kairos_env.sims.robot.fake.leader import ScriptedLeader
from kairos_env.sims.robot.fake.robot import FakeRobot
from kairos_env.sims.robot.spec import require_drivable

Robot = Positional[str]
_PORTS = ("/dev/serial/by-id/*", "/dev/ttyACM*", "/dev/ttyUSB*", "/dev/tty.usbmodem*", "/dev/tty.usbserial*")


def find(json: bool = False) -> int:
    """Lists the ports that a robot may be on, and cameras; opens none of them.

    Args:
        json: print one JSON object.
    """
    ports = [path for pattern in _PORTS for path in sorted(glob.glob(pattern))]
    cameras = sorted(glob.glob("/dev/video*"))
    if json:
        print_json({"ports": ports, "cameras": cameras})
        return 0
    print("ports    " + ("\n         ".join(ports) or "none: is the adapter plugged in, and may you read its device?"))
    print("cameras  " + ("\n         ".join(cameras) or "none"))
    return 0


def check(robot: Robot, opening: Fields[Opening], beats: int = 60) -> int:
    """Opens a robot, reads it for a while and tells what it is; sends nothing. 1 if readings fail or it has a fault.

    Args:
        robot: JSON file of LeRobot's configuration, or fake:so101 or fake:koch.
        beats: readings.
    """
    with opened(robot, opening, rate_hz=30.0, beats=1) as env:
        print(f"{env.robot_spec.name}: {', '.join(f'{k} {v}' for k, v in env.versions().items())}")
        print(f"{'joint':<22}{'range':>22}  {'unit':<11}{'velocity':>9}{'acceler.':>9}{'step':>7}{'now':>9}")
        took, state = [], env.look()
        for _ in range(beats):
            began = time.monotonic()
            state = env.look()
            took.append(time.monotonic() - began)
        for i, field in enumerate(env.robot_spec.action):
            low, high, *rest = (env.limits[k][i] for k in ("low", "high", "velocity", "acceleration", "step"))
            numbers = f"{rest[0]:>9.0f}{rest[1]:>9.0f}{rest[2]:>7.0f}{state['positions'][i]:>9.1f}"
            print(f"{field.name:<22}{low:>10.1f} ...{high:>8.1f}  {field.unit:<11}{numbers}")
        for camera in env.robot_spec.cameras:
            age = 1000 * state["ages"].get(camera.name, float("nan"))
            print(f"camera {camera.name}: {camera.height} x {camera.width}, newest picture {age:.0f} ms old")
        missed = state["counts"].get("missed", 0)
        late = np.percentile(took, [50, 95]) * 1000
        print(f"{beats} readings: {late[0]:.1f} ms (median), {late[1]:.1f} ms (95 %), {missed} failed")
        bad = missed > 0 or state["state"] == "stopped"
        print(f"state: {state['state']}, {state['reason']}" if bad else "nothing was sent; it is ready to be armed")
    return int(bad)


def fake(
    robot: str = "so101",
    out: Path = Path("fake-robot.json"),
    rate_hz: float = 30.0,
    size: tuple[int, int] = (120, 160),
    seconds: float | None = None,
) -> int:
    """Serves a fake arm on a pseudo-terminal until it is stopped, for LeRobot's tools and ours.

    Args:
        robot: so101 or koch.
        out: where LeRobot's configuration of it is written.
        rate_hz: control periods a second; one passes whenever positions are read.
        size: height and width of both cameras; 0,0 for none.
        seconds: how long; by default until Ctrl-C.
    """
    cameras = {} if not size[0] else dict.fromkeys(("front", "wrist"), size)
    served = FakeRobot(robot, rate_hz, cameras)
    try:
        out.write_text(json.dumps(served.config(), indent=2))
        print(f"{served.arm.robot} on {served.port}; its configuration is in {out}", flush=True)
        print(f"  kairos robot check {out}\n  calibration: {served.calibration_folder}", flush=True)
        end = None if seconds is None else time.monotonic() + seconds
        while end is None or time.monotonic() < end:
            time.sleep(0.2)
            with served.bus.paused():
                served.publish()  # cameras go on while nobody reads the joints
    finally:
        served.close()
        out.unlink(missing_ok=True)
    return 0


def run(
    robot: Robot,
    guarded: Fields[Guarded],
    policy: str = "policy",
    model: str = "kairos-tiny",
    instruction: str = "",
    task: str = "reach",
    episodes: int = 1,
    decisions: int = 100,
    rate_hz: float | None = None,
    out: Path | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> int:
    """Runs a policy on a robot; 1 if it was stopped.

    Args:
        robot: JSON file of LeRobot's configuration, or fake:so101 or fake:koch.
        policy: by name, as everywhere: policy, cem, random, module:factory; of a fake also expert.
        model: bundled name or folder.
        instruction: the task in words; by default the model's.
        task: of a fake's scene: reach or push.
        episodes: each begins with a guarded return to where the robot was armed; a fake's, with a new scene.
        decisions: of an episode.
        rate_hz: decisions a second; by default the model's.
        out: records the episodes as a LeRobot dataset, with commanded and sent actions.
        seed: of the policy, and of a fake's scenes.
        device: of the model.
    """
    spec = robot_of(policy, model)
    options: dict[str, Any] = {"spec": spec, "rate_hz": rate_hz or (10.0 if spec is None else spec.control_rate_hz)}
    options |= {"instruction": instruction or (spec.instruction if spec else ""), "max_episode_steps": decisions}
    with opened(robot, guarded, task=task, **options) as env:
        acting = make_policy(policy, env, model, device)
        arm(env, guarded.armed_by)

        def decide(observation: Observation, info: Any) -> Array:
            return np.asarray(acting.act(observation))

        def start(number: int, info: Any) -> None:
            acting.reset(seed + number)
            begin(acting, info)

        return play(env, start, decide, episodes, seed, out, policy)


def replay(
    robot: Robot,
    guarded: Fields[Guarded],
    data: Path = Path("datasets/my-arm"),
    episode: int = 0,
    seed: int = 0,
) -> int:
    """Plays the actions of a recorded episode on a robot; 1 if it was stopped.

    Args:
        robot: JSON file of LeRobot's configuration, or fake:so101 or fake:koch.
        data: a recording of this robot: LeRobot dataset, HDF5.
        episode: number of the episode.
        seed: of a fake's scene.
    """
    recording = open_recording(data)
    if not 0 <= episode < len(recording):
        raise ValueError(f"--episode {episode}: {data} has {len(recording)} episodes, 0 ... {len(recording) - 1}")
    actions = iter(recording[episode].actions)
    options = {"rate_hz": recording.spec.control_rate_hz, "max_episode_steps": len(recording[episode])}
    with opened(robot, guarded, **options) as env:
        require_drivable(_without_cameras(recording.spec), env.robot_spec)
        arm(env, guarded.armed_by)
        return play(env, _nothing, lambda seen, info: next(actions), 1, seed, None, "replay")


def teleop(
    robot: Robot,
    guarded: Fields[Guarded],
    leader: Path = Path("leader.json"),
    seconds: float = 60.0,
    rate_hz: float = 30.0,
) -> int:
    """Lets a leader arm move a robot; 1 if it was stopped.

    Args:
        robot: JSON file of LeRobot's configuration, or fake:so101 or fake:koch.
        leader: JSON file of the configuration of LeRobot's teleoperator.
        seconds: how long.
        rate_hz: goals a second.
    """
    return record(robot, guarded, str(leader), None, "", 1, seconds, rate_hz)


def record(
    robot: Robot,
    guarded: Fields[Guarded],
    leader: str = "leader.json",
    out: Path | None = Path("datasets/my-arm"),
    instruction: str = "",
    episodes: int = 10,
    seconds: float = 20.0,
    rate_hz: float = 30.0,
    task: str = "reach",
    disturb: float = 0.0,
    size: tuple[int, int] = (48, 64),
    cameras: tuple[str, ...] = ("front", "wrist"),
    seed: int = 0,
) -> int:
    """Records episodes that a leader arm shows, as a LeRobot dataset; 1 if the robot was stopped.

    What was really sent is the action of the dataset; what the leader asked for stands beside it, as
    ``kairos.commanded``, and for a fake what its scripted expert would have done, as ``kairos.expert_actions``.

    Args:
        robot: JSON file of LeRobot's configuration, or fake:so101 or fake:koch.
        leader: JSON file of the configuration of LeRobot's teleoperator; or expert, the script of a fake's task.
        out: folder of the dataset, which is not there yet.
        instruction: the task in words; of a fake, that of its scene.
        episodes: number of episodes.
        seconds: of an episode.
        rate_hz: goals a second, and frames of the dataset.
        task: of a fake's scene: reach or push.
        disturb: share of the decisions at which the expert is led astray for a moment, so that the data show how to
            come back.
        size: height and width of a fake's cameras.
        cameras: of a fake: front, wrist.
        seed: of a fake's scenes.
    """
    scripted = leader == "expert"
    if scripted and not robot.startswith("fake:"):
        raise ValueError("--leader expert knows the scenes of fakes only; give a leader arm's configuration")
    options: dict[str, Any] = {"rate_hz": rate_hz, "max_episode_steps": max(1, round(seconds * rate_hz))}
    options |= {"task": task, "cameras": dict.fromkeys(cameras, size)}
    if not scripted:
        config = read_object(leader, "a leader")
        options |= {"beats": 1, "instruction": instruction}
    with opened(robot, guarded, **options) as env:
        if scripted:
            script = ScriptedLeader(env.expert_action, env.robot_spec, disturb)
            return play(env, script.begin, script.lead, episodes, seed, out, "expert", past_success=True)
        env.open_leader(config)
        arm(env, guarded.armed_by)
        return play(env, _nothing, lambda seen, info: env.lead(), episodes, seed, out, "leader")


def _nothing(number: int, info: Any) -> None:
    """At the start of an episode."""


def _without_cameras(spec: RobotSpec) -> RobotSpec:
    return RobotSpec(spec.name, (), spec.proprio, spec.action, spec.control_rate_hz, spec.instruction)
