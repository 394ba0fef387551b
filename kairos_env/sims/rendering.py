"""Small off-screen MuJoCo renderer: one GL context, no multisampling, shadows or reflections.

A frame is drawn at twice the wanted size and averaged over 2x2 boxes, which is antialiasing for a
fraction of what multisampling costs a software rasteriser.
"""

from __future__ import annotations

import atexit
import importlib
import os
import sys
import weakref
from typing import Any

import numpy as np

from kairos_env.records import Array

SUPERSAMPLE = 2
_MISSING_GL = (
    "no off-screen OpenGL found (tried {tried}). Install Mesa's software renderer:\n"
    "  apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri     (then MUJOCO_GL=egl)\n"
    "  apt-get install libosmesa6                               (then MUJOCO_GL=osmesa)\n"
    "{reasons}"
)


class RenderingUnavailable(RuntimeError):
    """This machine has no OpenGL that can draw without a screen."""


def _open_context(backend: str, height: int, width: int) -> Any:
    """Opens a current GL context of ``backend`` ("egl", "osmesa" or "glfw")."""
    try:
        context = importlib.import_module(f"mujoco.{backend}").GLContext(width, height)
        context.make_current()
        return context
    except Exception:
        # PyOpenGL chooses its platform once, at import; forget it so that the next backend can choose again.
        os.environ.pop("PYOPENGL_PLATFORM", None)
        for name in [n for n in sys.modules if n.split(".")[0] == "OpenGL" or n.startswith(f"mujoco.{backend}")]:
            del sys.modules[name]
        raise


def open_gl_context(height: int, width: int) -> tuple[Any, str]:
    """Opens an off-screen GL context: ``MUJOCO_GL`` if it is set, else EGL, else OSMesa.

    Returns:
        The context, already current, and the name of its backend.

    Raises:
        RenderingUnavailable: none works; the message names the packages to install.
    """
    wanted = os.environ.get("MUJOCO_GL", "").strip().lower()
    if wanted and wanted not in ("egl", "osmesa", "glfw"):
        raise RenderingUnavailable(f"MUJOCO_GL={wanted!r} cannot render off-screen; use egl, osmesa or glfw")
    backends = (wanted,) if wanted else ("egl", "osmesa")
    reasons = []
    for backend in backends:
        try:
            return _open_context(backend, height, width), backend
        except Exception as error:  # noqa: BLE001 - ImportError, AttributeError, RuntimeError, GLError ...; all are shown
            reasons.append(f"  {backend}: {type(error).__name__}: {error}")
    raise RenderingUnavailable(_MISSING_GL.format(tried=", ".join(backends), reasons="\n".join(reasons)))


class OffscreenRenderer:
    """Draws views of one MuJoCo model; the context and its meshes are uploaded once.

    Args:
        model: ``mujoco.MjModel``.
        max_size: largest image height or width in pixels that will be asked for.
        visible_group: the geom group that is drawn.
        unseen_group: the geom group that could be drawn, but shows in no picture.
    """

    def __init__(self, model: Any, max_size: int, visible_group: int = 1, unseen_group: int = 4) -> None:
        import mujoco

        self._model = model
        self._mujoco = mujoco
        self.max_size = max_size
        buffer = max_size * SUPERSAMPLE
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = 0
        model.vis.global_.offwidth = max(buffer, model.vis.global_.offwidth)
        model.vis.global_.offheight = max(buffer, model.vis.global_.offheight)
        self._gl, self.backend = open_gl_context(buffer, buffer)
        # EGL's display is torn down at exit; hooks run newest first, so this one frees the context before that.
        self_reference = weakref.ref(self)
        self._at_exit = lambda: renderer.close() if (renderer := self_reference()) else None
        atexit.register(self._at_exit)
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=200)
        flags = self._scene.flags
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            flags[flag] = 0
        flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = 0
        flags[mujoco.mjtRndFlag.mjRND_HAZE] = 0
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = 0
        self._option.geomgroup[visible_group] = 1
        self._option.sitegroup[:] = 0
        self._perturb = mujoco.MjvPerturb()
        self._unseen_group = unseen_group

    def render(self, data: Any, camera: Any, height: int, width: int, show_unseen: bool = False) -> Array:
        """Draws one view.

        Args:
            data: ``mujoco.MjData`` with up-to-date kinematics.
            camera: ``mujoco.MjvCamera``.
            height, width: image size in pixels.
            show_unseen: draws the unseen group too (to check that it makes no difference).

        Returns:
            uint8 (height, width, 3) RGB.
        """
        mujoco = self._mujoco
        if max(height, width) > self.max_size:
            raise ValueError(f"image of {height}x{width} pixels asked, but the renderer holds {self.max_size}")
        big_h, big_w = height * SUPERSAMPLE, width * SUPERSAMPLE
        self._gl.make_current()
        self._option.geomgroup[self._unseen_group] = show_unseen
        rectangle = mujoco.MjrRect(0, 0, big_w, big_h)
        mujoco.mjv_updateScene(
            self._model, data, self._option, self._perturb, camera, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene
        )
        mujoco.mjr_render(rectangle, self._scene, self._context)
        pixels = np.empty((big_h, big_w, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, rectangle, self._context)
        boxes = pixels[::-1].reshape(height, SUPERSAMPLE, width, SUPERSAMPLE, 3)
        total = boxes.sum(axis=(1, 3), dtype=np.uint16)
        return ((total + SUPERSAMPLE) // SUPERSAMPLE**2).astype(np.uint8)

    def close(self) -> None:
        """Frees the GL objects and the context; safe to call twice."""
        if self._gl is not None:
            atexit.unregister(self._at_exit)
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None

    def __del__(self) -> None:
        if getattr(self, "_context", None) is not None:
            self.close()
