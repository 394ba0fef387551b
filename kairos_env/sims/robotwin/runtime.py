"""RoboTwin's code in its own interpreter: imported without what it does not need, and drawn as this machine can.

Nothing of it is changed on the disk. What is replaced in memory:
    torch, open3d, curobo ...    empty modules where they are not installed: it imports them for point clouds, for its
                                 GPU planner and for downloads
    curobo's planner             `planner.ArmPlanner`
    ray tracing                  SAPIEN's rasteriser, unless the rendering is ``"official"``
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import os
import platform
import random
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kairos_env.sims.robotwin.planner import ArmPlanner

_NOT_NEEDED = ("torch", "open3d", "huggingface_hub", "imageio", "curobo", "h5py", "pytorch3d")
_PACKAGES = ("sapien", "mplib", "numpy", "toppra", "rlinf-robotwin-runtime")


_CLUTTER = {
    "objaverse/list.json": '{"item_names": [], "list_of_items": {}, "z_max": {}, "radius": {}, "z_offset": {}}',
    "same.json": "{}",
}
"""Lists of objects, and empty ones."""


class Runtime:
    """RoboTwin's tasks, ready to be set up.

    Args:
        code: folder of the ``robotwin`` package, or a checkout.
        layout: ``"package"``, ``"2.0"`` or ``"newest"``, see `home.RoboTwinHome`.
        assets: folder of objects, robots and textures.
        robot: name of the embodiment.

    Attributes:
        rendering: ``"fast"``, ``"shadows"`` or ``"official"``; of scenes that are set up from now on.
        Unstable: what a set-up raises whose objects do not come to rest.
    """

    def __init__(self, code: str, layout: str, assets: str, robot: str) -> None:
        self.rendering = "fast"
        self._code, self._layout, self._assets, self._robot = Path(code), layout, Path(assets), robot
        self._package = "robotwin.envs" if layout == "package" else "envs"
        sys.meta_path.append(_NotNeeded())
        if layout != "package":  # a checkout's paths are relative to it, and its modules are named ``envs`` ...
            if Path("assets").absolute() != self._assets:
                self._enter_checkout()
            sys.path[:0] = [str(self._code), str(self._code / "description" / "utils")]
        robots = importlib.import_module(f"{self._package}.robot.robot")
        robots.CuroboPlanner = ArmPlanner  # type: ignore[attr-defined]
        robots.load_curobo_config = lambda root, arm: {}  # type: ignore[attr-defined] # read whatever plans
        robots.Robot.set_planner = _with_kinematics(robots.Robot.set_planner)
        self.Unstable = importlib.import_module(f"{self._package}.utils.create_actor").UnStableError
        self.Actor = importlib.import_module(f"{self._package}.utils.actor_utils").Actor
        self._draw_as_wanted()

    def versions(self) -> dict[str, str]:
        """Of everything that could change a result."""
        found = {"python": platform.python_version(), "robotwin_layout": self._layout}
        for name in _PACKAGES if self._layout == "package" else _PACKAGES[:-1]:
            found[name] = importlib.metadata.version(name)
        return found

    def task(self, name: str) -> Any:
        """A task that is not set up yet."""
        return getattr(importlib.import_module(f"{self._package}.{name}"), name)()

    def arguments(self, task: str, config: str) -> dict[str, Any]:
        """What ``setup_demo`` takes beside the seed, as RoboTwin's own scripts put it together."""
        found = self._read(f"demo_{config}")
        camera = self._read("_camera_config")[found["camera"]["head_camera_type"]]
        folder = str(self._assets / "embodiments" / self._robot)
        robots = [self._yaml(Path(folder, "config.yml")) for _ in range(2)]  # each is changed by its user
        return found | {
            "task_name": task,
            "head_camera_h": camera["h"],
            "head_camera_w": camera["w"],
            "left_robot_file": folder,
            "right_robot_file": folder,
            "dual_arm_embodied": True,
            "left_embodiment_config": robots[0],
            "right_embodiment_config": robots[1],
            "embodiment_name": self._robot,
            "planner_backend": "curobo",
            "eval_mode": True,
            "eval_video_log": False,
            "render_freq": 0,
            "save_data": False,
            "need_plan": True,
        }

    def instruction(self, task: str, info: dict[str, str], wording: str, seed: int) -> str:
        """One of the wordings that RoboTwin has for an episode; the same seed gives the same.

        Args:
            task: its name.
            info: placeholders of the wordings -> what they stand for here.
            wording: ``"seen"`` or ``"unseen"``.
            seed: of the choice.
        """
        where = "robotwin.description.instructions" if self._layout == "package" else "generate_episode_instructions"
        generate = importlib.import_module(where).generate_episode_descriptions
        before = random.getstate()
        random.seed(seed)  # checkouts draw from the global generator
        try:
            found = generate(task, [info], 1)
        finally:
            random.setstate(before)
        if not found or not found[0][wording]:
            raise ValueError(f"RoboTwin has no {wording} instruction for {task} with {sorted(info)}")
        return str(found[0][wording][0])

    def _read(self, name: str) -> dict[str, Any]:
        folder = {"package": "configs/task", "2.0": "task_config", "newest": "env_cfg/task_config"}[self._layout]
        return self._yaml(self._code / folder / f"{name}.yml")

    @staticmethod
    def _yaml(path: Path) -> dict[str, Any]:
        import yaml

        return yaml.safe_load(path.read_text(encoding="utf-8"))

    def _enter_checkout(self) -> None:
        """Makes the working folder one in which ``./assets`` are the assets and all else is the checkout's.

        A checkout reads the lists of the objects that clutter is made of when it is imported, whatever is played:
        without them, it gets empty ones, and can only play clean scenes.
        """
        lists = all((self._assets / "objects" / name).is_file() for name in _CLUTTER)
        if self._assets == self._code / "assets" and lists:
            os.chdir(self._code)
            return
        import tempfile

        self._folder = tempfile.TemporaryDirectory(prefix="robotwin-")
        folder = Path(self._folder.name)
        _link_entries(self._code, folder, but="assets")
        if lists:
            (folder / "assets").symlink_to(self._assets)
        else:
            _link_entries(self._assets, folder / "assets", but="objects")
            _link_entries(self._assets / "objects", folder / "assets" / "objects", but="objaverse")
            for name, text in _CLUTTER.items():
                path = folder / "assets" / "objects" / name
                path.parent.mkdir(exist_ok=True)
                path.unlink(missing_ok=True)
                path.write_text(text, encoding="utf-8")
        os.chdir(folder)

    def _draw_as_wanted(self) -> None:
        """Puts `rendering` between RoboTwin and SAPIEN: RoboTwin always asks for ray tracing with shadows."""
        import sapien.render
        from sapien.wrapper.scene import Scene

        shader = sapien.render.set_camera_shader_dir

        def set_shader(name: str) -> None:
            shader("default" if name == "rt" and self.rendering != "official" else name)

        sapien.render.set_camera_shader_dir = set_shader
        for setting in ("samples_per_pixel", "path_depth", "denoiser"):
            self._only_official(sapien.render, f"set_ray_tracing_{setting}")
        for light in ("add_directional_light", "add_point_light"):
            self._shadows_if_wanted(Scene, light)

    def _only_official(self, owner: Any, name: str) -> None:
        original = getattr(owner, name)
        setattr(owner, name, lambda *args: original(*args) if self.rendering == "official" else None)

    def _shadows_if_wanted(self, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def add(scene: Any, *args: Any, **options: Any) -> Any:
            return original(scene, *args, **options | ({"shadow": False} if self.rendering == "fast" else {}))

        setattr(owner, name, add)


def _link_entries(source: Path, folder: Path, but: str) -> None:
    """Makes a folder of links to what is in another one, which need not be there, without one entry."""
    folder.mkdir(exist_ok=True)
    for entry in source.iterdir() if source.is_dir() else ():
        if entry.name != but:
            (folder / entry.name).symlink_to(entry)


def _with_kinematics(set_planner: Callable[..., None]) -> Callable[..., None]:
    """RoboTwin's ``set_planner``, whose planners of arms then get the kinematics of those that time its actions."""

    def set_both(robot: Any, scene: Any = None) -> None:
        set_planner(robot, scene)
        robot.left_planner.attach(robot.left_mplib_planner.planner)
        robot.right_planner.attach(robot.right_mplib_planner.planner)

    return set_both


class _HasEverything(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing


class _Nothing(metaclass=_HasEverything):
    """What an attribute of a module that is not needed gives: a class, which takes anything and does nothing."""

    def __init__(self, *args: Any, **options: Any) -> None:
        pass


class _Empty(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing


class _NotNeeded(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Asked last by ``import``: empty modules for what is not installed and not needed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in _NOT_NEEDED:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass
