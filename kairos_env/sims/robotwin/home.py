"""The files of a RoboTwin installation and its tasks, as its own files tell them; no simulator is needed.

A home is made by ``kairos sims install`` (`install`):

    env/             virtual environment; without a checkout, RoboTwin's task code is one of its packages
    assets/          objects, embodiments, background_texture: a folder, or a link to one
    driver/          Vulkan for processors, where no device of the machine draws
    installed.json   versions

RoboTwin's code is the package ``rlinf-robotwin-runtime`` of the environment, or the git checkout that the variable
KAIROS_ROBOTWIN_ROOT names, of version 2.0 (``task_config/``, ``script/``) or newer (``env_cfg/task_config/``,
``scripts/``). A checkout's own ``assets`` are used where it has any robots in them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kairos_env.runs import did_you_mean, file_sha256
from kairos_env.sims.install import default_home, noted
from kairos_env.sims.robotwin.vulkan import driver_variables

Config = Literal["clean", "randomized"]
Layout = Literal["package", "2.0", "newest"]

CHECKOUT = "KAIROS_ROBOTWIN_ROOT"
ROBOT = "aloha-agilex"
REVISION = "c15cc97be71e35244b6605d2d84c187f8565cc4d"
"""Of the official assets, TianxingChen/RoboTwin2.0 on the hub, that the package's code was made for."""
ASSETS_ADVICE = (
    "RoboTwin's robots and objects are on the hub (dataset TianxingChen/RoboTwin2.0: embodiments.zip, objects.zip, "
    "background_texture.zip): give a folder that has them with `kairos sims install robotwin --assets FOLDER`"
)
_OBJECT = re.compile(r"[\"'](\d{3}_[\w.-]+)[\"']")
_CONFIGS = {"package": "configs/task", "2.0": "task_config", "newest": "env_cfg/task_config"}
_TEXTURES = ("background_texture/seen", "background_texture/unseen")
_CLUTTER = ("objects/objaverse/list.json", "objects/same.json")


@dataclass(frozen=True)
class RoboTwinHome:
    """An installation.

    Attributes:
        home: its folder.
        code: folder of the ``robotwin`` package, or a checkout.
        layout: how ``code`` is laid out.
    """

    home: Path
    code: Path
    layout: Layout

    @classmethod
    def open(cls, home: Path | None = None) -> RoboTwinHome:
        """The installation in a folder; None is the default one, see `home_folder`.

        Raises:
            FileNotFoundError: there is none, or it was not finished; it says what to run.
            ValueError: KAIROS_ROBOTWIN_ROOT names no checkout.
        """
        home = home_folder() if home is None else home.expanduser().absolute()
        checkout = os.environ.get(CHECKOUT)
        if checkout:
            code = Path(checkout).expanduser().absolute()
            try:
                return cls(home, code, layout_of(code))
            except ValueError as error:
                raise ValueError(f"the variable {CHECKOUT}: {error}") from error
        found = sorted(home.glob("env/lib/python3*/site-packages/robotwin"))
        if not found:
            where = "" if home == home_folder() else f" --home {home}"
            raise FileNotFoundError(
                f"no RoboTwin in {home}. Install it with `kairos sims install robotwin{where}`, or let the variable "
                "KAIROS_SIMS name the folder that holds another installation"
            )
        return cls(home, found[0], "package")

    @property
    def python(self) -> Path:
        """The interpreter."""
        return self.home / "env" / "bin" / "python"

    @property
    def assets(self) -> Path:
        """The folder of objects, robots and textures; it need not exist."""
        own = self.code / "assets"
        return own if self.layout != "package" and (own / "embodiments").is_dir() else self.home / "assets"

    @functools.cached_property
    def versions(self) -> dict[str, str]:
        """Of Python and of RoboTwin's packages as they were installed; {} if nobody noted them."""
        found = noted(self.home)
        return {"python": found["python"], **found["packages"]} if found else {}

    @property
    def official_assets(self) -> bool:
        """Whether the assets say that they are the published ones."""
        manifest = self.assets.resolve().parent / ".robotwin-assets.json"
        return manifest.is_file() and json.loads(manifest.read_text(encoding="utf-8")).get("revision") == REVISION

    @functools.cached_property
    def robot_digest(self) -> str:
        """12 letters that tell robots apart: of the description and the settings of this one."""
        folder = self.assets / "embodiments" / ROBOT
        files = [path for ending in ("*.yml", "*.urdf", "*.srdf") for path in folder.rglob(ending)]
        names = sorted(str(path.relative_to(folder)) for path in files)
        return hashlib.sha256("".join(f"{n} {file_sha256(folder / n)}\n" for n in names).encode()).hexdigest()[:12]

    def variables(self) -> dict[str, str]:
        """What the simulator's process needs to find assets and driver, and to take one core."""
        root = str(self.assets.parent)
        found = {"ROBOTWIN_ASSETS_ROOT": root, "ASSETS_PATH": root}
        return found | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"} | driver_variables(self.home / "driver")

    def tasks(self) -> dict[str, str]:
        """Name of every task -> what it is about, in RoboTwin's words for the whole task."""
        return dict(self._tasks)

    @functools.cached_property
    def _tasks(self) -> dict[str, str]:
        found = {}
        for path in sorted((self.code / "description" / "task_instruction").glob("*.json")):
            if (self.code / "envs" / f"{path.stem}.py").is_file():
                words = json.loads(path.read_text(encoding="utf-8"))["full_description"]
                found[path.stem] = re.sub(r"[<>]", "", words).strip()
        if not found:
            raise FileNotFoundError(f"{self.code} has no tasks of RoboTwin: it is not whole")
        return found

    def require_task(self, task: str) -> str:
        """Returns ``task``, or raises ValueError with the nearest names."""
        if task not in self._tasks:
            raise ValueError(f"RoboTwin has no task {task!r}; {did_you_mean(task, self._tasks)}")
        return task

    def step_limit(self, task: str) -> int:
        """Actions after which an episode has failed."""
        return self._limits[self.require_task(task)]

    @functools.cached_property
    def _limits(self) -> Mapping[str, int]:
        text = (self.code / _CONFIGS[self.layout] / "_eval_step_limit.yml").read_text(encoding="utf-8")
        limits = {name: int(count) for name, count in re.findall(r"^(\w+)\s*:\s*(\d+)\s*$", text, re.MULTILINE)}
        return {task: limits.get(task, 1000) for task in self._tasks}  # RoboTwin's own default

    def has_dense_reward(self, task: str) -> bool:
        """Whether RoboTwin's code has a dense reward for the task."""
        return "Reward.build_top" in self._source(task)

    def needs(self, task: str, config: Config = "clean") -> list[str]:
        """Files and folders below ``assets`` that a task needs, as its code names them."""
        objects = [f"objects/{name}" for name in sorted(set(_OBJECT.findall(self._source(task))))]
        return [f"embodiments/{ROBOT}/config.yml", *objects, *(_TEXTURES + _CLUTTER if config == "randomized" else ())]

    def missing(self, task: str, config: Config = "clean") -> list[str]:
        """Those of `needs` that are not there."""
        return [name for name in self.needs(task, config) if not (self.assets / name).exists()]

    def require_assets(self, task: str, config: Config) -> None:
        """Raises FileNotFoundError that names what a task lacks: RoboTwin itself does not name it."""
        if lacking := self.missing(task, config):
            raise FileNotFoundError(
                f"RoboTwin's task {task} ({config}) needs what {self.assets} does not have: {', '.join(lacking)}. "
                f"{ASSETS_ADVICE}; `kairos sims check robotwin` lists what each task lacks"
            )

    def _source(self, task: str) -> str:
        return (self.code / "envs" / f"{self.require_task(task)}.py").read_text(encoding="utf-8")

    def worker_options(self) -> dict[str, Any]:
        """What the simulator's process is told of the installation, as JSON."""
        return {"code": str(self.code), "layout": self.layout, "assets": str(self.assets), "robot": ROBOT}


def layout_of(checkout: Path) -> Layout:
    """The layout of a git checkout of RoboTwin.

    Raises:
        ValueError: it is none.
    """
    layouts: tuple[Layout, Layout] = ("newest", "2.0")
    for layout in layouts:
        if (checkout / _CONFIGS[layout] / "_eval_step_limit.yml").is_file() and (checkout / "envs").is_dir():
            return layout
    raise ValueError(
        f"{checkout} is no checkout of RoboTwin 2.0: envs/ and task_config/ or env_cfg/task_config/ are expected in it"
    )


def home_folder() -> Path:
    """Where RoboTwin is installed unless said otherwise: $KAIROS_SIMS/robotwin, or ~/.cache/kairos/sims/robotwin."""
    return default_home("robotwin")
