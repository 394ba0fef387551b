"""Films of a hand that does the tasks of the table top: what a person would show, without any robot's actions.

A hand of simple bodies (palm, four fingers, thumb, forearm) follows the scripted expert of `sims.tabletop` over the
same table, cube and disc, in the same light. Captions and the steps of a task come from the true state. What is between
the closed fingers moves with them.
"""

from __future__ import annotations

import numpy as np

from kairos_env.collect.films.film import GeneratedFilm, sentence
from kairos_env.records import Array
from kairos_env.sims.rendering import VISIBLE_GROUP, OffscreenRenderer
from kairos_env.sims.tabletop.conditions import CONDITIONS, PLAIN_SQUARE, Appearance
from kairos_env.sims.tabletop.experts import expert_action
from kairos_env.sims.tabletop.tasks import CUBE_REST_HEIGHT, LIFT_HEIGHT, PUSH_RADIUS, TASKS, TaskState, measure

SKINS = ((0.93, 0.76, 0.65), (0.80, 0.58, 0.44), (0.55, 0.36, 0.25), (0.33, 0.21, 0.15))
SLEEVES = {"blue": (0.15, 0.25, 0.6), "white": (0.9, 0.9, 0.9), "black": (0.08, 0.08, 0.1), "yellow": (0.85, 0.7, 0.1)}
INSTRUCTIONS = {task: text.replace("gripper", "hand") for task, text in TASKS.items()}
_STREAM = 20_372  # separates these draws from other uses of the same integers
_STEP, _DECISION = 0.005, 0.2  # s
_WIDE, _FASTEST = 0.08, 0.2  # m between thumb and fingers, m/s at which they close
_HELD = 0.042  # m between them with the cube there
_FINGER = 0.009  # m, radius
_FIELD_OF_VIEW = 25.0
_PUSHED = 0.03  # m


def hands_clip(seed: int, number: int, size: int, seconds: float, rate: float) -> GeneratedFilm:
    """Film ``number``, ``size`` pixels high and wide, with ``rate`` pictures a second."""
    rng = np.random.default_rng([_STREAM, seed, number])
    task = list(TASKS)[number % len(TASKS)]
    sleeve = str(rng.choice(list(SLEEVES)))
    appearance = CONDITIONS["varied"].appearance(int(rng.integers(2**31)))
    stage = _Stage(appearance, SKINS[int(rng.integers(len(SKINS)))], SLEEVES[sleeve], rng)
    renderer = OffscreenRenderer(stage.model, size)
    clumsy = float(rng.uniform(0, 0.4))
    states, held, frames = [stage.state], [False], []
    try:
        frames.append(renderer.render(stage.data, stage.camera, size, size))
        decision = 0
        for frame in range(1, round(seconds * rate) + 1):
            while decision * _DECISION < frame / rate - 1e-9:
                action = expert_action(task, stage.state).astype(np.float64)
                action[:3] *= 1 + clumsy * rng.uniform(-1, 1, 3)
                stage.act(action)
                states.append(stage.state)
                held.append(stage.holds)
                decision += 1
            frames.append(renderer.render(stage.data, stage.camera, size, size))
    finally:
        renderer.close()
    steps = task_steps(states, held)
    told = sentence(f"a hand in a {sleeve} sleeve {steps[0]}", *steps[1:])
    caption = f"{told} The cube and the disc lie on a table."
    facts = {"task": task, "steps": steps, "success": bool(measure(states[-1])[1][task])}
    return GeneratedFilm(np.stack(frames), caption, INSTRUCTIONS[task], facts)


def task_steps(states: list[TaskState], held: list[bool]) -> list[str]:
    """What was done, one after the other, by the true states of each decision."""
    steps: list[str] = []

    def add(step: str) -> None:
        if step not in steps:
            steps.append(step)

    first = states[0]
    for state, holds, before in zip(states[1:], held[1:], held, strict=False):
        if state.reach_distance < 0.05:
            add("reaches the red cube")
        if holds and not before:
            add("grasps it")
        if holds and state.height > LIFT_HEIGHT:
            add("lifts it")
        if holds and state.goal_distance < PUSH_RADIUS < first.goal_distance:
            add("carries it over the green disc")
        moved = float(np.linalg.norm((state.cube - first.cube)[:2])) > _PUSHED
        if moved and not (holds or before or "grasps it" in steps):
            add("pushes the cube")
        if not holds and state.goal_distance < PUSH_RADIUS < first.goal_distance and state.height < 0.01:
            add("leaves it on the green disc")
    return steps or ["moves above the table"]


class _Stage:
    """Table, cube, disc and hand, and the decisions that move it."""

    def __init__(
        self, appearance: Appearance, skin: tuple[float, ...], sleeve: tuple[float, ...], rng: np.random.Generator
    ) -> None:
        import mujoco

        self._mujoco = mujoco
        self.model = mujoco.MjModel.from_xml_string(_xml(appearance, skin, sleeve))
        self.data = mujoco.MjData(self.model)
        self.camera = mujoco.MjvCamera()
        self.camera.lookat[:], self.camera.distance = appearance.lookat, appearance.distance
        self.camera.azimuth, self.camera.elevation = appearance.azimuth, appearance.elevation
        cube = rng.uniform(-PLAIN_SQUARE, PLAIN_SQUARE, 2)
        goal = cube
        while np.linalg.norm(goal - cube) < 0.09:
            goal = rng.uniform((0.02, -0.1), (0.16, 0.1))
        self._eef = np.array([*rng.uniform((-0.12, -0.12), (0.0, 0.12)), rng.uniform(0.1, 0.18)])
        self._opening, self._offset = _WIDE, np.zeros(3)
        self.holds = False
        yaw = float(rng.uniform(-np.pi, np.pi)) / 2
        self.data.qpos[:7] = [*cube, CUBE_REST_HEIGHT, np.cos(yaw), 0, 0, np.sin(yaw)]
        self.data.mocap_pos[0] = [*goal, 0.0]
        self._pose()
        mujoco.mj_forward(self.model, self.data)

    @property
    def state(self) -> TaskState:
        return TaskState(
            self._eef.copy(), np.array(self.data.qpos[:3]), np.array(self.data.mocap_pos[0]), float(self._opening)
        )

    def act(self, action: Array) -> None:
        """One decision: a displacement [m], and fingers that close (1) or open (-1)."""
        steps = round(_DECISION / _STEP)
        for _ in range(steps):
            self._eef = np.clip(self._eef + action[:3] / steps, (-0.2, -0.18, 0.014), (0.2, 0.18, 0.2))
            wanted = _WIDE * (1 - action[3]) / 2
            change = np.clip(wanted - self._opening, -_FASTEST * _STEP, _FASTEST * _STEP)
            between = np.abs(self.data.qpos[:3] - self._eef) < (0.024, 0.03, 0.024)
            closed = self._opening + change <= _HELD and bool(between.all())
            if closed and change < 0 and not self.holds:
                self.holds, self._offset = True, self.data.qpos[:3] - self._eef
            if self.holds and change > 0:
                self.holds = False
            self._opening = max(self._opening + change, _HELD if self.holds else 0.0)
            self._pose()
            self._mujoco.mj_step(self.model, self.data)
            if self.holds:
                self.data.qpos[:3], self.data.qvel[:6] = self._eef + self._offset, 0.0
        self._mujoco.mj_forward(self.model, self.data)

    def _pose(self) -> None:
        """Puts the hand, the fingers and the thumb where they are."""
        aside = np.array([0.0, self._opening / 2 + _FINGER, 0.0])
        for number, place in enumerate((self._eef, self._eef + aside, self._eef - aside), 1):
            self.data.mocap_pos[number] = place


def _xml(appearance: Appearance, skin: tuple[float, ...], sleeve: tuple[float, ...]) -> str:
    def rgb(colour: tuple[float, ...], factor: float = 1.0) -> str:
        return " ".join(f"{min(1.0, max(0.0, value * factor)):.3f}" for value in colour)

    drawn, light = f'group="{VISIBLE_GROUP}"', appearance.light
    solid = f'{drawn} friction="0.4" solref="0.004 1" rgba="{rgb(skin)} 1"'
    ghost = f'{drawn} contype="0" conaffinity="0"'
    fingers = "".join(
        f'<geom type="capsule" fromto="{x} 0 0 {x * 0.9:.4f} 0.004 0.075" size="{_FINGER}" {solid}/>'
        for x in (-0.027, -0.009, 0.009, 0.027)
    )
    radius = PUSH_RADIUS / 0.8
    lamp = f"{appearance.lamp[0]:.3f} {appearance.lamp[1]:.3f} -1"
    soft, hard = rgb((0.4,) * 3, light), rgb((0.45,) * 3, light)
    return f"""<mujoco>
        <option timestep="{_STEP}"/>
        <visual>
            <global fovy="{_FIELD_OF_VIEW}"/>
            <headlight ambient="{soft}" diffuse="{soft}" specular="0.1 0.1 0.1"/>
        </visual>
        <worldbody>
            <light pos="0 0 2" dir="{lamp}" diffuse="{hard}"/>
            <geom type="box" size="1 1 0.05" pos="0 0 -0.05" rgba="{rgb(appearance.table)} 1" {drawn}
                friction="0.4" solref="0.004 1"/>
            <body name="cube"><freejoint/><geom type="box" size="0.02 0.02 0.02" density="1000" {drawn}
                rgba="{rgb(appearance.cube)} 1" friction="0.4" solref="0.004 1"/></body>
            <body name="goal" mocap="true"><geom type="ellipsoid" size="{radius:.4f} {radius:.4f} 0.002"
                pos="0 0 -0.0012" rgba="{rgb(appearance.disc)} 1" {ghost}/></body>
            <body name="hand" mocap="true">
                <geom type="box" size="0.036 0.03 0.018" pos="-0.01 0 0.1" rgba="{rgb(skin)} 1" {ghost}/>
                <geom type="capsule" fromto="-0.03 0 0.115 -0.22 0 0.25" size="0.026" rgba="{rgb(sleeve)} 1" {ghost}/>
            </body>
            <body name="fingers" mocap="true">{fingers}</body>
            <body name="thumb" mocap="true">
                <geom type="capsule" fromto="0 0 0 -0.02 -0.004 0.075" size="0.011" {solid}/>
            </body>
        </worldbody>
    </mujoco>"""
