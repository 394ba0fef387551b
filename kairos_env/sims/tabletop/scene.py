"""The table-top scene: a robosuite Panda, a red cube and a drawn green disc, as one MuJoCo model.

robosuite supplies the parts (arm, gripper, mount, arena, cube) and the assembly; its task classes, observables
and Python controller are left out, since they cost four fifths of a simulation step.
"""

from __future__ import annotations

import logging
import os
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from typing import Any

import numpy as np

from kairos_env.extras import require
from kairos_env.records import Array
from kairos_env.sims.rendering import UNSEEN_GROUP, VISIBLE_GROUP
from kairos_env.sims.tabletop.conditions import Appearance
from kairos_env.sims.tabletop.tasks import CUBE_REST_HEIGHT, PUSH_RADIUS

TABLE_HEIGHT = 0.8
"""World height of the table top [m]; positions elsewhere in the package are relative to its centre."""
ORIGIN = np.array([0.0, 0.0, TABLE_HEIGHT])
"""World position of the table-top centre [m]."""
FIELD_OF_VIEW = 25.0
"""Vertical opening of the scene camera [degrees]: a long lens keeps the cube's size nearly constant."""

_UNDRAWN_GROUP = 5  # geom group

# The mount and the foot of the arm stand outside the picture and are left undrawn.
_UNDRAWN_BODIES = (
    "fixed_mount0_torso",
    "fixed_mount0_pedestal",
    "fixed_mount0_controller_box",
    "fixed_mount0_pedestal_feet",
    "robot0_link0",
)
# Meshes that no supported camera sees from anywhere in the workspace. Software rasterisers pay for every vertex,
# in view or not. A test holds the pictures to the ones drawn with them.
_UNSEEN_BODIES = ("robot0_link1", "robot0_link2", "robot0_link3", "robot0_link4")


@dataclass(frozen=True)
class Scene:
    """A compiled model with the ids that the simulation needs."""

    model: Any
    arm_qpos: tuple[float, ...]
    arm_dofs: int
    eef_site: int
    cube_body: int
    cube_qpos: int
    finger_qpos: tuple[int, int]
    disc_mocap: int
    painted: tuple[int, int, int]
    lights: tuple[Array, Array]

    def paint(self, appearance: Appearance) -> None:
        """Gives table, cube, disc and light their looks of an episode; the next forward pass turns the lamp."""
        model, head = self.model, self.model.vis.headlight
        for geom, colour in zip(self.painted, (appearance.table, appearance.cube, appearance.disc), strict=True):
            model.geom_rgba[geom, :3] = np.clip(colour, 0.0, 1.0)
        levels, directions = self.lights
        head.ambient[:], head.diffuse[:], head.specular[:] = levels[:3] * appearance.light
        model.light_diffuse[0], model.light_specular[0] = levels[3:] * appearance.light
        model.light_dir[0] = directions + [*appearance.lamp, 0.0]


def _import_parts() -> tuple[Any, ...]:
    """robosuite's parts, imported without its banner of warnings and without its change of ``MUJOCO_GL``."""
    logger = logging.getLogger("robosuite_logs")

    def silent(record: logging.LogRecord) -> bool:
        return False

    setting = os.environ.get("MUJOCO_GL")
    if "mujoco" not in sys.modules:
        # `import mujoco` fails obscurely where MUJOCO_GL cannot work; drawing reports that properly, when it is needed.
        os.environ.pop("MUJOCO_GL", None)
    logger.addFilter(silent)
    try:
        return tuple(
            getattr(require(f"robosuite.models.{module}", "sim"), name)
            for module, name in (
                ("arenas", "TableArena"),
                ("bases", "robot_base_factory"),
                ("grippers", "gripper_factory"),
                ("objects", "BoxObject"),
                ("robots", "Panda"),
                ("tasks", "ManipulationTask"),
            )
        )
    finally:
        logger.removeFilter(silent)
        if setting is None:
            os.environ.pop("MUJOCO_GL", None)
        else:
            os.environ["MUJOCO_GL"] = setting


def _draw(arena: Any) -> None:
    """Paints the table plainly and adds the goal disc: a picture on the table that nothing collides with."""
    for geom in arena.worldbody.iter("geom"):
        if geom.get("name") == "table_visual":
            geom.attrib.pop("material", None)
            geom.set("size", " ".join(["1", "1", geom.get("size").split()[2]]))  # fills the background
    disc = ElementTree.SubElement(
        arena.worldbody, "body", {"name": "goal_disc", "mocap": "true", "pos": f"0.14 0 {TABLE_HEIGHT}"}
    )
    ElementTree.SubElement(
        disc,
        "geom",
        {
            "name": "goal_disc_visual",
            # The cap of a flat ellipsoid: a cylinder would show specks of its dark rim.
            "type": "ellipsoid",
            "size": f"{PUSH_RADIUS / 0.8} {PUSH_RADIUS / 0.8} 0.002",
            "pos": "0 0 -0.0012",
            "contype": "0",
            "conaffinity": "0",
            "group": "1",
        },
    )


def build_scene() -> Scene:
    """Assembles and compiles the scene (about two seconds).

    Raises:
        ImportError: robosuite or MuJoCo is missing; the message holds the install command.
    """
    table_arena, robot_base_factory, gripper_factory, box_object, panda, manipulation_task = _import_parts()
    import mujoco

    robot = panda(idn=0)
    robot.add_base(robot_base_factory(robot.default_base, idn=0))
    robot.add_gripper(gripper_factory("PandaGripper", idn="0_right"), robot.eef_name["right"])
    table_size = (0.8, 0.8, 0.05)
    robot.set_base_xpos(robot.base_xpos_offset["table"](table_size[0]))
    arena = table_arena(table_full_size=table_size, table_offset=(0, 0, TABLE_HEIGHT))
    arena.set_origin([0, 0, 0])
    _draw(arena)
    cube = box_object(name="cube", size=[CUBE_REST_HEIGHT] * 3, density=1000.0)
    task = manipulation_task(mujoco_arena=arena, mujoco_robots=[robot], mujoco_objects=[cube])
    model = task.get_model(mode="mujoco")
    model.vis.global_.fovy = FIELD_OF_VIEW
    # The default contacts are so soft that the arm could press the cube halfway into the table.
    for geom in ("table_collision", "cube_g0"):
        model.geom(geom).solref[:] = (0.004, 1.0)
        model.geom(geom).solimp[:3] = (0.95, 0.99, 0.001)
        # MuJoCo takes the larger friction of a pair: rubber pads (2) grip, but the cube slides on the table. With
        # robosuite's 1 on the table a push that presses down ever so slightly locks the cube in place.
        model.geom(geom).friction[0] = 0.4

    def index(kind: str, name: str) -> int:
        found = mujoco.mj_name2id(model, getattr(mujoco.mjtObj, f"mjOBJ_{kind}"), name)
        if found < 0:
            raise RuntimeError(
                f"robosuite's scene has no {kind.lower()} {name!r}; version 1.5.1 is supported: "
                "pip install 'kairos-env[sim]'"
            )
        return int(found)

    def joint_qpos(name: str) -> int:
        return int(model.jnt_qposadr[index("JOINT", name)])

    for group, bodies in ((UNSEEN_GROUP, _UNSEEN_BODIES), (_UNDRAWN_GROUP, _UNDRAWN_BODIES)):
        members = np.isin(model.geom_bodyid, [index("BODY", name) for name in bodies])
        model.geom_group[members & (model.geom_group == VISIBLE_GROUP)] = group
    return Scene(
        model=model,
        arm_qpos=tuple(float(q) for q in robot.init_qpos),
        arm_dofs=len(robot.init_qpos),
        eef_site=index("SITE", "gripper0_right_grip_site"),
        cube_body=index("BODY", "cube_main"),
        cube_qpos=joint_qpos("cube_joint0"),
        finger_qpos=(joint_qpos("gripper0_right_finger_joint1"), joint_qpos("gripper0_right_finger_joint2")),
        disc_mocap=int(model.body_mocapid[index("BODY", "goal_disc")]),
        painted=(index("GEOM", "table_visual"), index("GEOM", "cube_g0_vis"), index("GEOM", "goal_disc_visual")),
        lights=_lights(model),
    )


def _lights(model: Any) -> tuple[Array, Array]:
    """Of the plain scene: the levels of all light (5, 3), see `Scene.paint`, and the direction of the lamp (3,)."""
    head = model.vis.headlight
    levels = [head.ambient, head.diffuse, head.specular, model.light_diffuse[0], model.light_specular[0]]
    return np.array(levels), np.array(model.light_dir[0])


def camera_view(scene: Scene, name: str, appearance: Appearance) -> Any:
    """The ``mujoco.MjvCamera`` of camera ``"scene"`` (in front, looking at the robot) or ``"wrist"``."""
    import mujoco

    camera = mujoco.MjvCamera()
    if name == "wrist":
        camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        camera.fixedcamid = mujoco.mj_name2id(scene.model, mujoco.mjtObj.mjOBJ_CAMERA, "robot0_eye_in_hand")
        return camera
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = ORIGIN + appearance.lookat
    camera.distance, camera.azimuth = appearance.distance, appearance.azimuth
    camera.elevation = appearance.elevation
    return camera
