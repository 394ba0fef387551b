"""LIBERO-plus's perturbations, made anew on LIBERO's own simulator; runs in the simulators' own interpreter.

Formulas and numbers are those of LIBERO-plus's published program (github.com/sylvestf/LIBERO-plus): the same task gives
the same scene and the same picture, also where NumPy 2 or a missing ImageMagick stop that program. Language
perturbations change the instruction alone: the simulator has nothing to do.

How a simulator uses this: `problem_class` makes the scene. Before every reset the robot's ``init_qpos`` is set to
`robot_qpos`, after it the agent view to `camera_pose`. Every picture of the agent view passes through a `SensorNoise`
as the renderer draws it, rows from the bottom.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

import numpy as np

NO_VIEW = (0, 0, 100, 0, 0)
"""The view of tasks whose camera is not perturbed."""

_PIVOT = np.array([0.0, 0.0, 0.8])  # [m], about which the published views turn and scale
_AXIS_Y, _AXIS_Z = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])
_DEFAULT_JOINTS = (0.0, -1.61037389e-01, 0.0, -2.44459747, 0.0, 2.22675220, np.pi / 4)  # Panda in LIBERO [rad]
ROBOT_STATES = 500
"""Published initial joint positions beside the default, index 1 ... 500."""


# -- camera ---------------------------------------------------------------------------------------------------------


def camera_pose(
    position: Sequence[float] | np.ndarray,
    quaternion: Sequence[float] | np.ndarray,
    view: Sequence[int] = NO_VIEW,
    decimals: int | None = 4,
) -> tuple[np.ndarray, np.ndarray]:
    """The agent view's pose under a perturbation of the viewpoint.

    In this order: up by ``vertical`` about the axis through (0, 0, 0.8) m parallel to y, by ``horizontal`` about the
    vertical axis, away from (0, 0, 0.8) m to ``scale`` percent of the distance, then, on the spot, by ``turn`` about z
    and by ``tilt`` up about y. The published program rounds after every step, also for `NO_VIEW`.

    Args:
        position: of the unperturbed camera (3,) [m], in the world.
        quaternion: of the unperturbed camera (4,), wxyz.
        view: (horizontal [degrees], vertical [degrees], scale [percent], turn [degrees], tilt [degrees]), as in the
            names of tasks.
        decimals: to which positions and quaternions are rounded; None does not round.

    Returns:
        Position float64 (3,) and unit quaternion float64 (4,), wxyz.
    """
    if len(view) != 5:
        raise ValueError(f"view={list(view)}: give five numbers, (horizontal, vertical, scale, turn, tilt)")
    horizontal, vertical, scale, turn, tilt = view
    if scale <= 0:
        raise ValueError(f"view={list(view)}: the third number, the distance in percent, must be positive")

    def rounded(x: np.ndarray) -> np.ndarray:
        return x if decimals is None else np.array([round(v, decimals) for v in x.tolist()])  # np.round errs at ties

    place, attitude = np.asarray(position, float), np.asarray(quaternion, float)
    if vertical:
        place, attitude = _rotated(place, attitude, _AXIS_Y, -vertical)
        place, attitude = rounded(place), rounded(attitude)
    place, attitude = (rounded(x) for x in _rotated(place, attitude, _AXIS_Z, horizontal))
    if scale != 100:
        place = rounded(_PIVOT + (place - _PIVOT) * (scale / 100))
    if turn:
        attitude = rounded(_rotated(place, attitude, _AXIS_Z, turn)[1])
    if tilt:
        attitude = rounded(_rotated(place, attitude, _AXIS_Y, -tilt)[1])
    return place, attitude / np.linalg.norm(attitude)


def _rotated(
    position: np.ndarray, quaternion: np.ndarray, axis: np.ndarray, degrees: float
) -> tuple[np.ndarray, np.ndarray]:
    """Position (3,) and quaternion (4,) turned about an axis through the pivot."""
    angle = np.radians(degrees)
    arm = position - _PIVOT
    along = axis * (axis @ arm)
    moved = along + (arm - along) * np.cos(angle) + np.cross(axis, arm) * np.sin(angle)
    half, (w, v) = angle / 2, (quaternion[0], quaternion[1:])
    c, s = np.cos(half), np.sin(half) * axis
    product = np.concatenate([[c * w - s @ v], c * v + w * s + np.cross(s, v)])
    return _PIVOT + moved, product / np.linalg.norm(quaternion)


# -- robot ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _robot_states() -> np.ndarray:
    """(500, 7) joint positions [rad]: the default moved in a random direction, by 0.1 for the first hundred, then by
    0.2, 0.3, 0.4 and 0.5; drawn as published, to the eighth decimal that the published table has.
    """
    directions = np.random.RandomState(42).randn(ROBOT_STATES, 7)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    distance = 0.1 * (1 + np.arange(ROBOT_STATES) // 100)
    return np.round(np.array(_DEFAULT_JOINTS) + directions * distance[:, None], 8)


def robot_qpos(index: int) -> np.ndarray | None:
    """Joint positions float64 (7,) [rad] of a perturbed robot, index 1 ... 500; None for 0, the robot's own default.

    The published evaluation resets the robot to them, which sets the controller's goal orientation and rest posture,
    and then restores an initial state of the benchmark, which puts the joints back: what remains after the wait steps
    is what the controller pulls the arm towards. `our_scenes` for ``"robot"`` keep the whole displacement.
    """
    if not 0 <= index <= ROBOT_STATES:
        raise ValueError(f"robot={index}: the published initial states are 0 (default), 1 ... {ROBOT_STATES}")
    return None if index == 0 else _robot_states()[index - 1].copy()


# -- scenes ---------------------------------------------------------------------------------------------------------


# Where the picture of the surface that objects stand on is, by kind of problem.
_SURFACES = {
    "libero_floor_manipulation": "texplane",
    "libero_tabletop_manipulation": "tex-table",
    "libero_kitchen_tabletop_manipulation": "tex-table",
    "libero_living_room_tabletop_manipulation": "tex-living_room_table",
    "libero_study_tabletop_manipulation": "tex-desk",
}
_LAMP_DISTANCE = 3.0  # [m] from the middle of the work place, for a lamp that is moved: within the walls


def problem_class(scene: Mapping[str, Any], params: Mapping[str, Any]) -> Any:
    """The hf-libero class that simulates a task, to be called as hf-libero's own problems are.

    LIBERO-plus's scenes with other tables, floors, walls or lights are problems that LIBERO does not know: each is one
    of its five kinds with another scene file, floor and wall. `our_scenes` change the scene after LIBERO has put it
    together; they need no other files than LIBERO's own.

    Args:
        scene: ``problem``, the name in the task definition; ``base_problem``, the kind that it derives from, None if
            LIBERO knows it itself; ``scene``, a file in the assets folder or None; ``floor`` and ``wall``, styles;
            ``objects``, files in the assets folder of objects that LIBERO does not know.
        params: of the perturbation; of interest are ``light`` and ``textures`` of scenes of ours.

    Raises:
        ValueError: LIBERO has no such kind of problem.
    """
    import libero.libero.envs.problems  # noqa: F401 - registers the problems
    from libero.libero.envs.arenas.style import STYLE_MAPPING
    from libero.libero.envs.base_object import OBJECTS_DICT
    from libero.libero.envs.bddl_base_domain import TASK_MAPPING

    from kairos_env.sims.libero.tasks import texture_file

    name = (scene["base_problem"] or scene["problem"]).lower()
    if name not in TASK_MAPPING:
        raise ValueError(f"problem {name!r}: LIBERO has {sorted(TASK_MAPPING)}")
    known: Any = TASK_MAPPING[name]
    published: dict[str, Any] = {}
    if scene["base_problem"]:
        for surface in ("floor", "wall"):
            STYLE_MAPPING[surface][scene[surface]] = PurePosixPath(texture_file(surface, scene[surface])).name
        styles = {"floor_style": scene["floor"], "wall_style": scene["wall"]}
        published = {"scene_xml": scene["scene"], "scene_properties": styles}
    elif not params.get("ours") and not scene["objects"]:
        return known
    added = {PurePosixPath(file).parts[1]: file for file in scene["objects"]}  # new_objects/box_of_yogurt/...

    class Scene(known):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **published, **kwargs)

        def _assert_problem_name(self) -> None:
            self.parsed_problem["problem_name"] = name  # LIBERO looks up its placement samplers with it

        def _load_model(self) -> None:
            for category in self.parsed_problem["objects"]:
                file = added.get(category.rsplit("__", 1)[0])  # box_of_yogurt__1
                if file is not None:
                    OBJECTS_DICT[category] = _object_class(category, os.path.join(self.custom_asset_dir, file))
            super()._load_model()
            for part, stem in params.get("textures", {}).items():
                wanted = {"floor": "texplane", "wall": "tex-wall", "surface": _SURFACES[name]}[part]
                texture = self.model.asset.find(f"texture[@name='{wanted}']")
                texture.set("file", os.path.join(self.custom_asset_dir, "textures", f"{stem}.png"))
            if "light" in params:
                for lamp in self.model.worldbody.iter("light"):
                    _relight(lamp, params["light"], np.array(self.workspace_offset, float))

    return Scene


def _object_class(category: str, path: str) -> Any:
    """A class of objects that LIBERO-plus adds, as hf-libero's own are called: with a name."""
    import xml.etree.ElementTree as ElementTree

    from robosuite.models.objects import MujocoXMLObject

    class Added(MujocoXMLObject):
        def __init__(self, name: str) -> None:
            free = {"type": "free", "damping": "0.0005"}
            super().__init__(path, name=name, joints=[free], obj_type="all", duplicate_collision_geoms=False)
            self.category_name = category
            self.object_properties: dict[str, Any] = {"vis_site_names": {}}
            self.rotation = {"x": (-np.pi / 2,) * 2, "y": (-np.pi,) * 2, "z": (np.pi,) * 2}
            self.rotation_axis = None

        def _get_object_subtree(self) -> Any:
            """robosuite expects the object within another body; some of these files do without that one."""
            alone = self.worldbody.find("./body[@name='object']")
            if alone is None:
                return super()._get_object_subtree()
            around = ElementTree.Element("body")
            around.append(alone)
            self.worldbody.append(around)
            found = super()._get_object_subtree()
            self.worldbody.remove(around)
            return found

    return Added


def _relight(lamp: Any, light: Mapping[str, Any], middle: np.ndarray) -> None:
    """Changes a lamp of a scene's description; ``middle`` (3,) of the work place [m]."""
    for kind in ("diffuse", "specular"):
        strength = np.array(lamp.get(kind).split(), float) * light["color"]
        lamp.set(kind, " ".join(map(str, strength)))
    if "elevation" in light and lamp.get("name") == "light1":  # the other ones hardly reach the work place
        turn, rise = np.radians([light["azimuth"], light["elevation"]])
        towards = np.array([np.cos(rise) * np.cos(turn), np.cos(rise) * np.sin(turn), np.sin(rise)])
        lamp.set("pos", " ".join(map(str, middle + _LAMP_DISTANCE * towards)))
        lamp.set("dir", " ".join(map(str, -towards)))
        lamp.set("castshadow", str(light["shadow"]).lower())


OUR_DIMENSIONS = ("light", "background", "robot")
"""What there are `our_scenes` for."""

# LIBERO-plus names what it varies in its light scenes (intensity, colour, direction, shadow), but the scenes themselves
# are in its 6.4 GB archive of assets only, and their numbers are published nowhere. These are ours.
_INTENSITIES = (0.7, 0.5, 0.3, 0.15, 0.0)  # of the lamps; the camera's own light stays
_COLORS = ((1, 0.9, 0.75), (0.7, 0.85, 1), (1, 0.65, 0.4), (0.4, 1, 0.5), (0.4, 0.4, 1))
_DIRECTIONS = ((90, 70), (-90, 60), (45, 50), (-45, 40), (10, 30))  # azimuth and elevation of the lamp [degrees]
_AIMED = 0.5  # aimed at the work place, the lamp is as bright there as LIBERO's, which is aimed beside it
_FLOORS = ("rustic_floor", "white_marble_floor", "brown_ceramic_tile", "dark_floor_texture", "gray_floor")
_WALLS = ("light_blue_wall", "gray_plaster", "canvas_sky_blue", "yellow_linen_wall_texture", "stucco_wall")
_TABLES = ("light_floor", "brown_ceramic_tile", "marble_floor", "capriccio_sky", "dark_blue_wall")


def our_scenes(dimension: str) -> list[dict[str, Any]]:
    """Scenes of ours for dimensions that the benchmark's own do not cover with LIBERO's assets.

    They run on every task of LIBERO and are never counted as the benchmark's. Shadows are seen in rendering
    ``"official"`` only.

    Args:
        dimension: ``"light"``, ``"background"`` or ``"robot"``.

    Returns:
        ``params`` of tasks: ``ours`` (True), ``name`` such as ``"ours_light_shadow_3"``, ``kind``, ``strength`` 1 ... 5
        and one of ``light`` (``color``, factors of the lamps' red, green and blue; ``azimuth`` and ``elevation``
        [degrees] and ``shadow`` of a lamp that is moved), ``textures`` (files for floor, wall and the surface that
        objects stand on) and ``robot`` (published joint positions, that are to be set again after the initial state).
    """

    def scene(kind: str, strength: int, **change: Any) -> dict[str, Any]:
        name = f"ours_{dimension}_{kind}_{strength}"
        return {"ours": True, "name": name, "kind": kind, "strength": strength, **change}

    strengths = range(1, 6)
    if dimension == "light":
        moved = [{"color": [_AIMED] * 3, "azimuth": a, "elevation": e} for a, e in _DIRECTIONS]
        return [
            *(scene("intensity", i, light={"color": [_INTENSITIES[i - 1]] * 3}) for i in strengths),
            *(scene("color", i, light={"color": list(_COLORS[i - 1])}) for i in strengths),
            *(scene("direction", i, light={**moved[i - 1], "shadow": False}) for i in strengths),
            *(scene("shadow", i, light={**moved[i - 1], "shadow": True}) for i in strengths),
        ]
    if dimension == "background":
        around = [{"floor": floor, "wall": wall} for floor, wall in zip(_FLOORS, _WALLS, strict=True)]
        return [
            *(scene("room", i, textures=around[i - 1]) for i in strengths),
            *(scene("surface", i, textures={"surface": _TABLES[i - 1]}) for i in strengths),
            *(scene("all", i, textures={**around[-i], "surface": _TABLES[i - 1]}) for i in strengths),
        ]
    if dimension == "robot":
        return [scene("whole", i, robot=100 * i - 50) for i in strengths]  # the middle one of each published distance
    raise ValueError(f"dimension={dimension!r}: there are scenes of ours for {', '.join(OUR_DIMENSIONS)}")


# -- sensor noise ---------------------------------------------------------------------------------------------------

NOISES = ("motion blur", "gaussian blur", "zoom blur", "fog", "glass blur")
"""Ten strengths of each, in this order: index 1 ... 10 is motion blur, 11 ... 20 gaussian blur and so on."""

# Per strength: radius and standard deviation of the streak [pixels].
_MOTION = ((5, 2), (8, 3), (10, 4), (12, 5), (15, 6), (18, 8), (20, 10), (25, 12), (30, 15), (35, 20))
# Largest magnification and the step up to it, from 1; as given to `numpy.arange`.
_ZOOM = (
    *((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    *((1.36, 0.01), (1.41, 0.01), (1.46, 0.02), (1.51, 0.02), (1.56, 0.03)),
)
# Amount of fog, and by how much its bumps decay from each size to half of it.
_FOG = (
    *((0.5, 3.0), (1.0, 2.8), (1.5, 2.5), (2.0, 2.2), (2.5, 2.0)),
    *((3.0, 1.8), (3.5, 1.6), (4.0, 1.5), (4.5, 1.4), (5.0, 1.3)),
)
# Blur before and after [pixels], how far a pixel is taken from at most [pixels], how often.
_GLASS = (
    *((0.5, 1, 3), (0.7, 1, 3), (0.9, 2, 3), (1.0, 2, 2), (1.1, 3, 2)),
    *((1.3, 3, 2), (1.5, 4, 2), (1.8, 4, 2), (2.2, 5, 1), (2.5, 5, 1)),
)


class SensorNoise:
    """Noise on the pictures of the agent view, as LIBERO-plus's tasks have it.

    What is random (the direction of motion, fog, the panes of glass) is drawn anew for every picture and depends on
    index, seed and the number of the picture alone. The published program draws from a global state that the whole
    simulation shares, so its draws cannot be repeated; given the same draw, the pictures are the same.

    Args:
        index: 1 ... 50, see `NOISES`.
        seed: not negative.

    Attributes:
        kind: one of `NOISES`.
        strength: 1 ... 10.
        calls: how many pictures there have been; may be set, to continue elsewhere.
    """

    def __init__(self, index: int, seed: int) -> None:
        if not 1 <= index <= 10 * len(NOISES):
            raise ValueError(f"noise={index}: the published noises are 1 ... {10 * len(NOISES)}")
        if seed < 0:
            raise ValueError(f"seed={seed} must not be negative")
        self.index, self.seed, self.calls = index, seed, 0
        self.kind, self.strength = NOISES[(index - 1) // 10], (index - 1) % 10 + 1

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The next picture with noise; ``image`` is uint8 (H, W, 3), rows from the bottom, and stays as it is."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"a picture is uint8 (H, W, 3), not {image.dtype} {image.shape}")
        words = np.random.SeedSequence([self.index, self.seed, self.calls]).generate_state(4)
        random = np.random.RandomState(words)
        self.calls += 1
        level = self.strength - 1
        if self.kind == "motion blur":
            return _motion_blur(image, *_MOTION[level], angle=np.radians(random.uniform(-45, 45)))
        unit = image / 255.0
        if self.kind == "gaussian blur":
            unit = _gaussian(unit, self.strength)
        elif self.kind == "zoom blur":
            unit = _zoom_blur(unit.astype(np.float32), np.arange(1, *_ZOOM[level]))
        elif self.kind == "fog":
            unit = _fog(unit, *_FOG[level], random)
        else:
            unit = _glass_blur(unit, *_GLASS[level], random)
        return (np.clip(unit, 0, 1) * 255).astype(np.uint8)


def _gaussian(unit: np.ndarray, deviation: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(unit, (deviation, deviation, 0), mode="nearest")


def _motion_blur(image: np.ndarray, radius: int, deviation: float, angle: float) -> np.ndarray:
    """One half of a gaussian streak, its pixels chosen and rounded as ImageMagick does with 16 bits a channel."""
    taps = np.arange(2 * radius + 1)
    weights = np.exp(-(taps**2) / (2 * deviation**2))
    weights /= weights.sum()
    right, down = (np.ceil(taps * x - 0.5).astype(int) for x in (np.cos(angle), np.sin(angle)))
    height, width, _ = image.shape
    edge = 2 * radius + 1
    padded = np.pad(image, ((edge, edge), (edge, edge), (0, 0)), mode="edge").astype(float)
    total = np.zeros(image.shape)
    for weight, x, y in zip(weights, right + edge, down + edge, strict=True):
        total += weight * padded[y : y + height, x : x + width]
    return np.floor(np.floor(total * 257 + 0.5) / 257 + 0.5).astype(np.uint8)


def _zoom_blur(unit: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """The mean of the picture and its middle magnified by every factor, linearly between pixels."""
    total = np.zeros_like(unit)
    for factor in factors:
        rows, columns = (_magnified(size, factor) for size in unit.shape[:2])
        total += _between(_between(unit, *rows).transpose(1, 0, 2), *columns).transpose(1, 0, 2)
    return (unit + total) / (len(factors) + 1)


def _magnified(size: int, factor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Along one axis: the two pixels that each of ``size`` magnified ones lies between, and how far to the second."""
    cut = int(np.ceil(size / factor))
    enlarged = round(cut * factor)
    first = (enlarged - size) // 2
    at = np.arange(first, first + size) * ((cut - 1) / max(enlarged - 1, 1))
    lower = at.astype(int)
    upper = np.minimum(lower + 1, cut - 1)
    begin = (size - cut) // 2
    return begin + lower, begin + upper, (at - lower).astype(np.float32)[:, None, None]


def _between(rows: np.ndarray, lower: np.ndarray, upper: np.ndarray, share: np.ndarray) -> np.ndarray:
    low = rows[lower]
    return low + (rows[upper] - low) * share


def _fog(unit: np.ndarray, amount: float, decay: float, random: np.random.RandomState) -> np.ndarray:
    height, width, _ = unit.shape
    brightest = unit.max()
    size = max(256, 1 << (max(height, width) - 1).bit_length())  # published for pictures of up to 256 pixels
    veil = _plasma(size, decay, random)[:height, :width, None]
    return (unit + amount * veil) * brightest / (brightest + amount)


def _plasma(size: int, decay: float, random: np.random.RandomState) -> np.ndarray:
    """Fractal clouds in [0, 1], (size, size), by the diamond-square algorithm on a torus; size is a power of two."""
    clouds = np.zeros((size, size))
    step, bump = size, 100.0

    def bumpy(four: np.ndarray) -> np.ndarray:
        return four / 4 + bump * random.uniform(-bump, bump, four.shape)

    while step >= 2:
        half = step // 2
        corners = clouds[::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        clouds[half::step, half::step] = bumpy(pairs + np.roll(pairs, -1, axis=1))
        middles = clouds[half::step, half::step]
        beside = (middles + np.roll(middles, 1, axis=0)) + (corners + np.roll(corners, -1, axis=1))
        clouds[::step, half::step] = bumpy(beside)
        below = (middles + np.roll(middles, 1, axis=1)) + (corners + np.roll(corners, -1, axis=0))
        clouds[half::step, ::step] = bumpy(below)
        step, bump = half, bump / decay
    clouds -= clouds.min()
    return clouds / clouds.max()


def _glass_blur(
    unit: np.ndarray, deviation: float, reach: int, rounds: int, random: np.random.RandomState
) -> np.ndarray:
    """Pixels overwritten by near ones, row by row from the last pixel to the first, between two blurs.

    A pixel that is taken from may have been overwritten before in the same round, and so on along a chain. All chains
    are followed at once, each step twice as far as the one before, instead of one pixel after the other.
    """
    height, width, _ = unit.shape
    if min(height, width) <= 2 * reach:
        raise ValueError(f"a picture of {height} x {width} is too small for glass blur that reaches {reach} pixels")
    pixels = np.floor(_gaussian(unit, deviation) * 255).reshape(-1, 3)
    places = np.arange(height * width).reshape(height, width)
    inner = places[height - reach : reach : -1, width - reach : reach : -1].ravel()
    origin = places.ravel()
    for _ in range(rounds):
        right, down = random.randint(-reach, reach, size=(len(inner), 2)).T
        source = inner + down * width + right
        # A node below `size` is a pixel as the round finds it, one above is what the round leaves there.
        size = height * width
        leads = np.concatenate([np.arange(size), np.arange(size)])
        overwritten = np.zeros(size, bool)
        overwritten[inner] = True
        leads[size + inner] = source + size * (overwritten[source] & (source > inner))
        while leads[size:].max() >= size:
            leads = leads[leads]
        origin = origin[leads[size:]]
    return _gaussian(pixels[origin].reshape(unit.shape) / 255.0, deviation)
