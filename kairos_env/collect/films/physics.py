"""Films of bodies that fall, roll, collide and stand on each other, with captions from the true state.

Everything follows from seed and number: shapes, sizes, colours, floor, lights, camera and motion. What a caption says
is read from the simulated motion, not from what was planned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kairos_env.collect.films.film import GeneratedFilm, sentence
from kairos_env.records import Array
from kairos_env.sims.rendering import VISIBLE_GROUP, OffscreenRenderer

EVENTS = ("fall", "roll", "collide", "stack")
COLOURS = {
    "red": (0.85, 0.08, 0.08),
    "green": (0.10, 0.60, 0.20),
    "blue": (0.10, 0.25, 0.80),
    "yellow": (0.90, 0.80, 0.10),
    "orange": (0.95, 0.50, 0.05),
    "purple": (0.50, 0.15, 0.60),
    "white": (0.92, 0.92, 0.92),
    "black": (0.06, 0.06, 0.06),
}
FLOORS = {
    "grey": (0.45, 0.45, 0.48),
    "brown": (0.42, 0.30, 0.20),
    "dark": (0.18, 0.19, 0.22),
    "pale": (0.75, 0.74, 0.70),
}
SHAPES = {"ball": "sphere", "box": "box", "cylinder": "cylinder", "capsule": "capsule", "egg": "ellipsoid"}
_STREAM = 20_371  # separates these draws from other uses of the same integers
_STEP, _LOOK = 0.004, 2  # s; every so many steps are looked at
_MOVED, _BOUNCED, _FELL = 0.05, 0.015, 0.03  # m, from which motion is worth a word
_LIGHTS = {"dim": 0.55, "even": 1.0, "bright": 1.35}


@dataclass(frozen=True)
class Body:
    """One body: what it is called, its shape, half size [m], colour, and how it begins; turned by tilt, then by yaw."""

    colour: str
    shape: str
    size: float
    place: tuple[float, float, float]
    velocity: tuple[float, float, float] = (0.0, 0.0, 0.0)
    tilt: float = 0.0
    yaw: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def one(self) -> str:
        return f"an {self.name}" if self.colour[0] in "aeiou" else f"a {self.name}"

    @property
    def geom(self) -> str:
        """The size as MuJoCo's shapes take it."""
        s = self.size
        sizes = {"ball": (s,), "box": (s, s, s), "cylinder": (0.9 * s, s), "capsule": (0.6 * s, 0.6 * s)}
        return " ".join(f"{value:.4f}" for value in sizes.get(self.shape, (s, 0.7 * s, s)))


@dataclass(frozen=True)
class Motion:
    """The true motion of the bodies: positions and turned angles of T frames, and which pairs touched when.

    Args:
        places: (T, bodies, 3) m.
        turned: (bodies,) radians about horizontal axes, in all.
        touched: (striking, struck) numbers of bodies, the faster one first -> s of their first contact.
        highest: (bodies,) m, after the first contact with the floor.
    """

    places: Array
    turned: Array
    touched: dict[tuple[int, int], float]
    highest: Array


def physics_clip(seed: int, number: int, size: int, seconds: float, rate: float) -> GeneratedFilm:
    """Film ``number``, ``size`` pixels high and wide, with ``rate`` pictures a second."""
    rng = np.random.default_rng([_STREAM, seed, number])
    event = EVENTS[number % len(EVENTS)]
    bodies = _bodies(event, rng)
    floor, light = str(rng.choice(list(FLOORS))), str(rng.choice(list(_LIGHTS)))
    azimuth, elevation = float(rng.uniform(0, 360)), float(rng.uniform(-50, -20))
    frames, motion = _simulate(bodies, floor, _LIGHTS[light], (azimuth, elevation), rng, size, seconds, rate)
    told = describe(bodies, motion, azimuth)
    caption = f"{told} The floor is {floor}, the light {light}."
    names = " and ".join(body.one for body in bodies)
    facts = {"event": event, "bodies": [body.name for body in bodies], "azimuth": round(azimuth, 1)}
    return GeneratedFilm(frames, caption, f"{names} {_short(event)}", facts)


def _short(event: str) -> str:
    return {"fall": "falling", "roll": "rolling", "collide": "colliding", "stack": "on top of each other"}[event]


def _bodies(event: str, rng: np.random.Generator) -> list[Body]:
    colours = [str(c) for c in rng.permutation(list(COLOURS))]
    sizes = rng.uniform(0.035, 0.06, 3)
    shapes = [str(s) for s in rng.choice(list(SHAPES), 3)]
    heading = float(rng.uniform(0, 2 * np.pi))
    ahead = np.array([np.cos(heading), np.sin(heading)])
    if event == "fall":
        count = int(rng.integers(1, 3))
        spots = [tuple(rng.uniform(-0.12, 0.12, 2) + 0.14 * i * ahead) for i in range(count)]
        drift = [tuple(rng.uniform(-0.3, 0.3, 2)) for _ in range(count)]
        heights, tilts = rng.uniform(0.2, 0.45, count), rng.uniform(0, 3, count)
        return [
            Body(colours[i], shapes[i], sizes[i], (*spots[i], heights[i]), (*drift[i], 0.0), tilts[i])
            for i in range(count)
        ]
    round_one = str(rng.choice(["ball", "egg", "cylinder"])) if event != "stack" else "box"
    if event in ("roll", "collide"):
        start, speed = -ahead * rng.uniform(0.2, 0.3), ahead * rng.uniform(0.35, 0.8)
        tilt = np.pi / 2 if round_one == "cylinder" else 0.0
        first = Body(colours[0], round_one, sizes[0], (*start, 1.02 * sizes[0]), (*speed, 0.0), tilt, heading)
        if event == "roll":
            return [first]
        aside = np.array([-ahead[1], ahead[0]]) * rng.uniform(-0.02, 0.02)
        return [first, Body(colours[1], shapes[1], sizes[1], (*aside, 1.02 * sizes[1]))]
    off = rng.uniform(0, 1.3) * sizes[1] * ahead  # some towers stand, others do not
    low = Body(colours[0], "box", sizes[0], (0.0, 0.0, sizes[0]))
    top = Body(colours[1], shapes[1], sizes[1], (*off, 2 * sizes[0] + sizes[1] + rng.uniform(0.005, 0.1)))
    return [low, top]


def _xml(bodies: Sequence[Body], floor: str, light: float, rng: np.random.Generator) -> str:
    lamp = " ".join(f"{value:.3f}" for value in (*rng.uniform(-1, 1, 2), 2.0))

    def rgb(colour: tuple[float, ...], factor: float = 1.0) -> str:
        return " ".join(f"{min(1.0, value * factor):.3f}" for value in colour)

    contact = f'group="{VISIBLE_GROUP}" friction="0.7 0.005 0.002" condim="6" solref="0.01 0.35"'
    parts = [
        f'<body pos="{" ".join(f"{x:.5f}" for x in body.place)}" euler="{body.yaw:.4f} {body.tilt:.4f} 0"><freejoint/>'
        f'<geom type="{SHAPES[body.shape]}" size="{body.geom}" rgba="{rgb(COLOURS[body.colour])} 1" density="800" '
        f"{contact}/></body>"
        for body in bodies
    ]
    shine = " ".join(str(-float(x)) for x in lamp.split())
    soft, hard = rgb((0.35,) * 3, light), rgb((0.5,) * 3, light)
    return f"""<mujoco>
        <compiler angle="radian" eulerseq="zxy"/>
        <option timestep="{_STEP}"/>
        <visual><global fovy="32"/><headlight ambient="{soft}" diffuse="{soft}" specular="0.1 0.1 0.1"/></visual>
        <worldbody>
            <light pos="{lamp}" dir="{shine}" diffuse="{hard}"/>
            <geom type="plane" size="3 3 0.1" rgba="{rgb(FLOORS[floor])} 1" {contact}/>
            {"".join(parts)}
        </worldbody>
    </mujoco>"""


def _simulate(
    bodies: Sequence[Body],
    floor: str,
    light: float,
    view: tuple[float, float],
    rng: np.random.Generator,
    size: int,
    seconds: float,
    rate: float,
) -> tuple[Array, Motion]:
    import mujoco

    model = mujoco.MjModel.from_xml_string(_xml(bodies, floor, light, rng))
    data = mujoco.MjData(model)
    for i, body in enumerate(bodies):
        data.qvel[6 * i : 6 * i + 3] = body.velocity
        if body.velocity[2] == 0 and body.place[2] < 2 * body.size:  # rolling: the floor's speed is nothing
            data.qvel[6 * i + 3 : 6 * i + 6] = _local(data, i, np.cross([0, 0, 1], body.velocity) / body.size)
    mujoco.mj_forward(model, data)
    camera = mujoco.MjvCamera()
    camera.lookat[:], camera.distance = (0.0, 0.0, 0.06), 1.25
    camera.azimuth, camera.elevation = view
    watch = _Watch(len(bodies))
    renderer = OffscreenRenderer(model, size)
    try:
        frames = [renderer.render(data, camera, size, size)]
        for frame in range(1, round(seconds * rate) + 1):
            while data.time < frame / rate - _STEP / 2:
                mujoco.mj_step(model, data)
                if round(data.time / _STEP) % _LOOK == 0:
                    watch.look(model, data)
            mujoco.mj_forward(model, data)
            watch.places.append(np.array(data.xpos[1:]))
            frames.append(renderer.render(data, camera, size, size))
    finally:
        renderer.close()
    places = np.stack([np.array([body.place for body in bodies]), *watch.places])
    return np.stack(frames), Motion(places, watch.turned, watch.touched, watch.highest)


def _local(data: Any, body: int, rotation: Array) -> Array:
    """A rotation of the world as a free joint's velocity has it: in the frame of its body."""
    import mujoco

    found = np.zeros(9)
    mujoco.mju_quat2Mat(found, data.qpos[7 * body + 3 : 7 * body + 7])
    return np.asarray(found.reshape(3, 3).T @ rotation)


class _Watch:
    """Notes of every step of the simulation."""

    def __init__(self, bodies: int) -> None:
        self.places: list[Array] = []
        self.turned, self.highest = np.zeros(bodies), np.zeros(bodies)
        self.touched: dict[tuple[int, int], float] = {}
        self._landed, self._speeds = np.zeros(bodies, bool), [0.0] * bodies

    def look(self, model: Any, data: Any) -> None:
        for i in range(len(self.turned)):
            rotation = data.xmat[1 + i].reshape(3, 3) @ data.qvel[6 * i + 3 : 6 * i + 6]
            self.turned[i] += float(np.linalg.norm(rotation[:2])) * _STEP * _LOOK
            if self._landed[i]:
                self.highest[i] = max(self.highest[i], float(data.xpos[1 + i][2]))
        for contact in data.contact:
            first, second = sorted(int(model.geom_bodyid[g]) - 1 for g in (contact.geom1, contact.geom2))
            if first < 0:
                self._landed[second] = True
            elif contact.dist < 0 and not {(first, second), (second, first)} & self.touched.keys():
                pair = (first, second) if self._speeds[first] >= self._speeds[second] else (second, first)
                self.touched[pair] = float(data.time)
        self._speeds = [float(np.linalg.norm(data.qvel[6 * i : 6 * i + 3])) for i in range(len(self.turned))]


def describe(bodies: Sequence[Body], motion: Motion, azimuth: float) -> str:
    """A sentence on what each body did, as a camera at ``azimuth`` degrees sees it."""
    lines: list[str] = []
    for i, body in enumerate(bodies):
        start, end = motion.places[0, i], motion.places[-1, i]
        hits = [f"hits the {bodies[struck].name}" for striking, struck in motion.touched if striking == i]
        phrases = []
        if start[2] - motion.places[:, i, 2].min() > _FELL:
            phrases += ["falls", *hits, *(["bounces"] if motion.highest[i] - end[2] > _BOUNCED else [])]
        gone = float(np.linalg.norm((end - start)[:2]))
        if gone > _MOVED:
            rolled = motion.turned[i] * body.size > 0.5 * gone
            phrases.append(f"{'rolls' if rolled else 'slides'} {seen_direction(end - start, azimuth)}")
        phrases += [hit for hit in hits if hit not in phrases]
        phrases += [f"lies on the {other.name}" for j, other in enumerate(bodies) if rests_on(motion, bodies, i, j)]
        phrases = phrases or ["stays where it is"]
        named = any(body.name in line for line in lines)
        lines.append(sentence(f"{f'the {body.name}' if named else body.one} {phrases[0]}", *phrases[1:]))
    return " ".join(lines)


def seen_direction(offset: Array, azimuth: float) -> str:
    """Where something went, as a camera sees it that looks along ``azimuth`` degrees."""
    ahead = np.array([np.cos(np.radians(azimuth)), np.sin(np.radians(azimuth))])
    depth, right = float(offset[:2] @ ahead), float(offset[0] * ahead[1] - offset[1] * ahead[0])
    if abs(right) > abs(depth):
        return "to the right" if right > 0 else "to the left"
    return "away" if depth > 0 else "closer"


def rests_on(motion: Motion, bodies: Sequence[Body], upper: int, lower: int) -> bool:
    """Whether one body lies on another at the end."""
    apart = motion.places[-1, upper] - motion.places[-1, lower]
    reach = bodies[upper].size + bodies[lower].size
    return upper != lower and bool(apart[2] > 0.6 * reach and np.linalg.norm(apart[:2]) < reach)
