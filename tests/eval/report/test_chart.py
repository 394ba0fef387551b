"""Curves stand where they should in the picture."""

from __future__ import annotations

import math

import pytest

from kairos_env.eval.report.chart import Chart, Curve
from kairos_env.eval.report.page import Section, render_page


def test_points_and_ticks_stand_in_the_frame() -> None:
    chart = Chart("loss", [Curve("a", [(0, 0.0), (50, 5.0), (100, 10.0)])], "step")
    left, top, right, bottom = chart.frame
    ((_, points),) = chart.lines
    assert points == f"{left:.1f},{bottom:.1f} {(left + right) / 2:.1f},{(top + bottom) / 2:.1f} {right:.1f},{top:.1f}"
    assert [tick.text for tick in chart.ticks_x] == ["0", "50", "100"]
    assert next((tick.text, tick.at) for tick in chart.ticks_y) == ("0", bottom)


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [(0.01, 100.0, ["0.01", "0.1", "1", "10", "100"]), (2.0, 6.0, ["2", "3", "4", "5", "6"]), (0.0, 10.0, None)],
)
def test_a_logarithmic_axis_has_powers_of_ten_and_needs_values_above_0(
    low: float, high: float, texts: list[str] | None
) -> None:
    chart = Chart("loss", [Curve("a", [(0, low), (1, high)])], logarithmic=True)
    found = [tick.text for tick in chart.ticks_y]
    assert found == (texts or [tick.text for tick in Chart("loss", chart.curves).ticks_y])
    middle = chart._at_y(math.sqrt(low * high)) if low else None
    assert middle is None or middle == pytest.approx((chart.frame[1] + chart.frame[3]) / 2)


def test_what_is_not_finite_or_has_no_points_is_left_out_and_one_value_is_drawn() -> None:
    curves = [Curve("a", [(0, math.nan), (1, 2.0)]), Curve("b", []), Curve("c", [(0, math.inf)])]
    chart = Chart("one", curves)
    assert [(curve.name, len(points.split())) for curve, points in chart.lines] == [("a", 1)]
    assert Chart("none", []).lines == []


def test_the_page_holds_the_curves_with_a_legend() -> None:
    curves = [Curve("ours", [(0, 1), (1, 2)]), Curve("<copy>", [(0, 1), (1, 1)], dashed=True, colour=1)]
    page = render_page("Run", [Section("Curves", charts=[Chart("psnr", curves, "step")])])
    assert page.count("<polyline") == 2 and "stroke-dasharray" in page
    assert "&lt;copy&gt;" in page and "<copy>" not in page
