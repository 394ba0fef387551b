"""Scenes that stand in for those of LIBERO-plus which need its own archive of assets."""

from __future__ import annotations

from typing import Any

SUBSTITUTED = ("light", "background", "robot")
"""Dimensions that there are `substitute_scenes` for."""

# LIBERO-plus names what it varies in its light scenes (intensity, colour, direction, shadow), but the scenes themselves
# are in its 6.4 GB archive of assets only, and their numbers are published nowhere. These stand in for them.
_INTENSITIES = (0.7, 0.5, 0.3, 0.15, 0.0)  # of the lamps; the camera's own light stays
_COLORS = ((1, 0.9, 0.75), (0.7, 0.85, 1), (1, 0.65, 0.4), (0.4, 1, 0.5), (0.4, 0.4, 1))
_DIRECTIONS = ((90, 70), (-90, 60), (45, 50), (-45, 40), (10, 30))  # azimuth and elevation of the lamp [degrees]
_AIMED = 0.5  # aimed at the work place, the lamp is as bright there as LIBERO's, which is aimed beside it
_FLOORS = ("rustic_floor", "white_marble_floor", "brown_ceramic_tile", "dark_floor_texture", "gray_floor")
_WALLS = ("light_blue_wall", "gray_plaster", "canvas_sky_blue", "yellow_linen_wall_texture", "stucco_wall")
_TABLES = ("light_floor", "brown_ceramic_tile", "marble_floor", "capriccio_sky", "dark_blue_wall")


def substitute_scenes(dimension: str) -> list[dict[str, Any]]:
    """Scenes in the place of LIBERO-plus's, for dimensions that it does not cover with LIBERO's assets.

    They run on every task of LIBERO and are never counted as the benchmark's. Shadows are seen in rendering
    ``"official"`` only.

    Args:
        dimension: ``"light"``, ``"background"`` or ``"robot"``.

    Returns:
        ``params`` of tasks: ``ours`` (True: not the benchmark's; the word is that of recorded results), ``name`` such
        as ``"ours_light_shadow_3"``, ``kind``, ``strength`` 1 ... 5 and one of ``light`` (``color``, factors of the
        lamps' red, green and blue; ``azimuth`` and ``elevation`` [degrees] and ``shadow`` of a lamp that is moved),
        ``textures`` (files for floor, wall and the surface that objects stand on) and ``robot`` (published joint
        positions, that are to be set again after the initial state).
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
    raise ValueError(f"dimension={dimension!r}: there are substitute scenes for {', '.join(SUBSTITUTED)}")
