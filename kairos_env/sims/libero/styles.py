"""Styles of floors and walls that task definitions name, and their pictures among the assets."""

from __future__ import annotations

from typing import Literal

_FLOORS = {
    "dark": "dark_floor_texture",
    "rustic": "rustic_floor",
    "light-gray": "light-gray-floor-tile",
    "white-marble": "white_marble_floor",
    "wood-plank": "seamless_wood_planks_floor",
    "brown-ceramic": "brown_ceramic_tile",
    "gray-ceramic": "gray_ceramic_tile",
    "tile_grigia_caldera": "tile_grigia_caldera_porcelain_floor",
    "dapper_gray": "dapper_gray_floor",
    "gray": "gray_floor",
    "light": "light_floor",
    "marble": "marble_floor",
    "brick-disp": "Bricks02_DISP_6K",
    "cliffde-ao": "CliffDesert006_AO_HIRES",
    "cobble01-ao": "Cobblestone01_AO_6K",
    "marble01-col": "Marble01_COL_3K",
    "tile": "Tiles01_COL_VAR1_6K",
    "woodfine01-a": "WoodFine001_ALBEDO_6K",
    "brick-col": "Bricks02_COL_VAR1_6K",
    "cliffde-col": "CliffDesert006_COL_VAR1_HIRES",
    "cliffde-nrm": "CliffDesert006_NRM_HIRES",
    "cobble01-disp": "Cobblestone01_DISP_6K copy",
    "marble-gloss": "Marble01_GLOSS_3K",
    "woodfine01-g": "WoodFine001_GLOSS_6K",
    "tile-r": "Tiles01_REFL_6K",
}
_WALLS = {
    "light-blue": "light_blue_wall",
    "dark-blue": "dark_blue_wall",
    "dark-gray-plaster": "dark_gray_plaster",
    "gray-plaster": "gray_plaster",
    "dark-green": "dark_green_plaster_wall",
    "white": "white_wall",
    "yellow-linen": "yellow_linen_wall_texture",
    "gray": "gray_wall",
    "stucco": "stucco_wall",
    "canvas": "canvas_sky_blue",
    "capriccio": "capriccio_sky",
    "cream": "cream_plaster",
    "gray-ceramic": "gray_ceramic_tile",
    "kona": "kona_gotham",
    "light-grey": "light_grey_plaster",
    "brick-disp": "Bricks02_DISP_6K",
    "cliffde-ao": "CliffDesert006_AO_HIRES",
    "cobble01-ao": "Cobblestone01_AO_6K",
    "marble01-col": "Marble01_COL_3K",
    "tile": "Tiles01_COL_VAR1_6K",
    "woodfine01-a": "WoodFine001_ALBEDO_6K",
    "brick-col": "Bricks02_COL_VAR1_6K",
    "cliffde-col": "CliffDesert006_COL_VAR1_HIRES",
}


def texture_file(surface: Literal["floor", "wall"], style: str) -> str:
    """The picture of a style, relative to the assets; a style that has no name of its own is called after its file."""
    return f"textures/{(_FLOORS if surface == 'floor' else _WALLS).get(style, style)}.png"
