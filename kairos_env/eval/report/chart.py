"""Curves as inline SVG: where everything stands in the picture. The template of the page draws it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

WIDTH, HEIGHT = 380, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 8, 34  # margins
_COLOURS = ("#1f6fb4", "#d95f02", "#2a9d4a", "#b5379e", "#7a6a00", "#555555")

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """A line through points.

    Args:
        name: for the legend.
        points: (x, y), in order; such as are not finite are left out.
        dashed: for what another curve is compared with.
        colour: number of the colour; curves that belong together share it.
    """

    name: str
    points: Sequence[Point]
    dashed: bool = False
    colour: int = 0

    @property
    def stroke(self) -> str:
        """Its colour in the picture."""
        return _COLOURS[self.colour % len(_COLOURS)]


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, in pixels."""

    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """Curves over a common axis.

    Args:
        title: above the picture.
        curves: to be drawn; those without points are left out.
        x: what the horizontal axis is.
        logarithmic: the vertical axis; only if all values are above 0.
    """

    title: str
    curves: Sequence[Curve]
    x: str = ""
    logarithmic: bool = False

    @cached_property
    def lines(self) -> list[tuple[Curve, str]]:
        """Each curve with its points in pixels, as an SVG polyline wants them."""
        at = [[f"{self._at_x(x):.1f},{self._at_y(y):.1f}" for x, y in self._points(c)] for c in self._shown]
        return [(curve, " ".join(points)) for curve, points in zip(self._shown, at, strict=True)]

    @cached_property
    def ticks_x(self) -> list[Tick]:
        """Round numbers on the horizontal axis."""
        return [Tick(self._at_x(x), _text(x)) for x in _round_numbers(*self._range_x, 4)]

    @cached_property
    def ticks_y(self) -> list[Tick]:
        """Round numbers on the vertical axis."""
        low, high = self._range_y
        if not self._log:
            return [Tick(self._at_y(y), _text(y)) for y in _round_numbers(low, high, 4)]
        powers = range(math.ceil(low), math.floor(high) + 1)
        if len(powers) < 2:  # within a power of ten
            return [Tick(self._at_y(y), _text(y)) for y in _round_numbers(10**low, 10**high, 4)]
        return [Tick(self._at_y(10.0**power), _text(10.0**power)) for power in powers]

    @cached_property
    def frame(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom edge of the plot in pixels."""
        return _LEFT, _TOP, WIDTH - _RIGHT, HEIGHT - _BOTTOM

    @cached_property
    def _shown(self) -> list[Curve]:
        return [curve for curve in self.curves if any(True for _ in self._points(curve))]

    @staticmethod
    def _points(curve: Curve) -> Iterator[Point]:
        return ((x, y) for x, y in curve.points if math.isfinite(x) and math.isfinite(y))

    @cached_property
    def _log(self) -> bool:
        return self.logarithmic and all(y > 0 for curve in self._shown for _, y in self._points(curve))

    @cached_property
    def _range_x(self) -> tuple[float, float]:
        return _range([x for curve in self._shown for x, _ in self._points(curve)])

    @cached_property
    def _range_y(self) -> tuple[float, float]:
        values = [y for curve in self._shown for _, y in self._points(curve)]
        return _range([math.log10(y) for y in values] if self._log else values)

    def _at_x(self, x: float) -> float:
        left, _, right, _ = self.frame
        low, high = self._range_x
        return left + (right - left) * (x - low) / (high - low)

    def _at_y(self, y: float) -> float:
        _, top, _, bottom = self.frame
        low, high = self._range_y
        return bottom - (bottom - top) * ((math.log10(y) if self._log else y) - low) / (high - low)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Smallest and largest value; never the same."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)


def _round_numbers(low: float, high: float, about: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from ``low`` to ``high``, about so many."""
    raw = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = unit * min((factor for factor in (1, 2, 5, 10) if factor * unit >= raw), default=10)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _text(value: float) -> str:
    return f"{value:.6g}" if 1e-3 <= abs(value) < 1e6 or value == 0 else f"{value:.0e}"
