"""Small off-screen MuJoCo renderer: one GL context, no multisampling, shadows or reflections.

A frame is drawn at twice the wanted size and averaged over 2x2 boxes, which is antialiasing for a
fraction of what multisampling costs a software rasteriser.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from kairos_env.records import Array

SUPERSAMPLE = 2
VISIBLE_GROUP, UNSEEN_GROUP = 1, 4  # geom groups: what is drawn; what could be drawn, but shows in no picture
_BACKENDS = ("egl", "osmesa", "glfw")
_EGL_PLATFORM_DEVICE = 0x313F
_MISSING_GL = (
    "no off-screen OpenGL on this machine: {backend} failed with {reason}\nInstall Mesa's software renderer:\n"
    "  apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri\n"
    "or OSMesa, and unset MUJOCO_GL:\n"
    "  apt-get install libosmesa6"
)


_FORKED = (
    "this process was forked from one that had drawn, and OpenGL does not survive a fork: start it with "
    'context="spawn", as in gym.make_vec(..., vectorization_mode="async", vector_kwargs={"context": "spawn"}), or let '
    "gym.make_vec(id, num_envs=...) choose the simulators' own vector form"
)


class RenderingUnavailable(RuntimeError):
    """Nothing can be drawn without a screen: no OpenGL on this machine, or none in this process."""


class _Process:
    """What became of OpenGL in this process."""

    drew = False  # a context was opened here, or in the process that this one was forked from
    forked = False  # drawing would hang: the threads and locks of OpenGL are not here


_abandoned: list[Any] = []


def _after_fork() -> None:
    _Process.forked = _Process.drew


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def egl_works() -> bool:
    """Whether EGL offers a device that can be drawn with off-screen.

    Asked through ctypes: once PyOpenGL has loaded one GL library, a process can no longer change to another.
    """
    query_type = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    display_type = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)
    try:
        egl = ctypes.CDLL("libEGL.so.1")
        address = egl.eglGetProcAddress
        initialize = egl.eglInitialize
    except (OSError, AttributeError):
        return False
    address.restype = ctypes.c_void_p
    initialize.argtypes = [ctypes.c_void_p] * 3
    query_at, display_at = address(b"eglQueryDevicesEXT"), address(b"eglGetPlatformDisplayEXT")
    if not query_at or not display_at:
        return False
    devices, found = (ctypes.c_void_p * 16)(), ctypes.c_int(0)
    query_type(query_at)(16, devices, ctypes.byref(found))
    chosen = os.environ.get("MUJOCO_EGL_DEVICE_ID", "")
    usable = range(found.value)
    if chosen:
        usable = range(int(chosen), int(chosen) + 1) if chosen.isdigit() and int(chosen) < found.value else range(0)
    for i in usable:
        display = display_type(display_at)(_EGL_PLATFORM_DEVICE, devices[i], None)
        if display and initialize(display, None, None):
            return True
    return False


def choose_backend() -> str:
    """The GL backend to use: ``MUJOCO_GL`` if it is set, else EGL where it works, else OSMesa.

    Raises:
        RenderingUnavailable: ``MUJOCO_GL`` names something that cannot draw off-screen.
    """
    wanted = os.environ.get("MUJOCO_GL", "").strip().lower()
    if wanted and wanted not in _BACKENDS:
        raise RenderingUnavailable(
            f"MUJOCO_GL={wanted!r} cannot draw off-screen; unset it, or use one of {list(_BACKENDS)}"
        )
    return wanted or ("egl" if egl_works() else "osmesa")


def open_gl_context(model: Any, size: int) -> tuple[Any, Any, str]:
    """Opens an off-screen GL context for ``model`` with `choose_backend`.

    Returns:
        The GL context (current), MuJoCo's context, and the name of the backend.

    Raises:
        RenderingUnavailable: it does not work; the message names the packages to install.
    """
    import mujoco

    if _Process.forked:
        raise RenderingUnavailable(_FORKED)
    backend = choose_backend()
    setting = os.environ.get("MUJOCO_GL")
    context = None
    try:
        os.environ["MUJOCO_GL"] = backend  # MuJoCo's C side looks here for the library to load its functions from
        context = importlib.import_module(f"mujoco.{backend}").GLContext(size, size)
        _Process.drew = True
        context.make_current()
        return context, mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value), backend
    except Exception as error:
        if context is not None:
            context.free()
        raise RenderingUnavailable(
            _MISSING_GL.format(backend=backend, reason=f"{type(error).__name__}: {error}")
        ) from error
    finally:
        if setting is None:
            os.environ.pop("MUJOCO_GL", None)
        else:
            os.environ["MUJOCO_GL"] = setting


def release_gl_context(backend: str) -> None:
    """Leaves this thread without a current GL context, so that another one may draw with it."""
    if backend == "egl":
        from mujoco.egl import egl_ext

        egl_ext.eglReleaseThread()
    elif backend == "osmesa":
        from OpenGL import GL, osmesa  # type: ignore[import-untyped]

        osmesa.OSMesaMakeCurrent(None, None, GL.GL_FLOAT, 0, 0)


class OffscreenRenderer:
    """Draws views of one MuJoCo model, from any thread; the context and its meshes are uploaded once.

    Args:
        model: ``mujoco.MjModel``.
        max_size: largest image height or width in pixels that will be asked for.
        sites: whether to draw sites, which some scenes use for things that light up.
    """

    def __init__(self, model: Any, max_size: int, sites: bool = False) -> None:
        import mujoco

        self._model = model
        self._mujoco = mujoco
        self.max_size = max_size
        buffer = max_size * SUPERSAMPLE
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = 0
        model.vis.global_.offwidth = max(buffer, model.vis.global_.offwidth)
        model.vis.global_.offheight = max(buffer, model.vis.global_.offheight)
        self._gl, self._context, self.backend = open_gl_context(model, buffer)
        # EGL's display is torn down at exit; hooks run newest first, so this one frees the context before that.
        self_reference = weakref.ref(self)
        self._at_exit = lambda: renderer.close() if (renderer := self_reference()) else None
        atexit.register(self._at_exit)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=max(200, model.ngeom + model.nsite))
        flags = self._scene.flags
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            flags[flag] = 0
        flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = 0
        flags[mujoco.mjtRndFlag.mjRND_HAZE] = 0
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = 0
        self._option.geomgroup[VISIBLE_GROUP] = 1
        if not sites:
            self._option.sitegroup[:] = 0
        self._perturb = mujoco.MjvPerturb()
        release_gl_context(self.backend)

    @contextmanager
    def _current(self) -> Iterator[None]:
        """The GL context is this thread's in the block."""
        if _Process.forked:
            raise RenderingUnavailable(_FORKED)
        self._gl.make_current()
        try:
            yield
        finally:
            release_gl_context(self.backend)

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
        self._option.geomgroup[UNSEEN_GROUP] = show_unseen
        rectangle = mujoco.MjrRect(0, 0, big_w, big_h)
        mujoco.mjv_updateScene(
            self._model, data, self._option, self._perturb, camera, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene
        )
        pixels = np.empty((big_h, big_w, 3), np.uint8)
        with self._current():
            mujoco.mjr_render(rectangle, self._scene, self._context)
            mujoco.mjr_readPixels(pixels, None, rectangle, self._context)
        boxes = pixels[::-1].reshape(height, SUPERSAMPLE, width, SUPERSAMPLE, 3)
        total = boxes.sum(axis=(1, 3), dtype=np.uint16)
        return ((total + SUPERSAMPLE) // SUPERSAMPLE**2).astype(np.uint8)

    def close(self) -> None:
        """Frees the GL objects and the context; safe to call twice."""
        gl, context, self._gl, self._context = self._gl, self._context, None, None
        if gl is None:
            return
        atexit.unregister(self._at_exit)
        if _Process.forked:
            _abandoned.append((gl, context))  # they belong to the parent; freeing them here would hang
            return
        gl.make_current()
        context.free()
        release_gl_context(self.backend)
        gl.free()

    def __del__(self) -> None:
        if getattr(self, "_gl", None) is not None:
            self.close()
