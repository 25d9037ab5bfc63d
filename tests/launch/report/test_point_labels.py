import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from launch.report import pareto
from launch.report.pareto import draw_pareto
from launch.report.point_labels import Box, choose
from launch.report.results import group_results

ROOM = Box(0, 0, 200, 120)
SIZE = (24.0, 9.0)


def test_a_value_stands_below_to_the_right_where_nothing_is_in_the_way() -> None:
    (x, y), box = choose((100, 60), SIZE, [], ROOM)
    assert x > 0 > y and box == Box(100 + x, 60 + y, 124 + x, 69 + y)


def test_a_value_stays_in_its_panel() -> None:
    for spot in itertools.product((0, 200), (0, 120)):
        assert choose(spot, SIZE, [], ROOM)[1].shared(ROOM) == pytest.approx(24 * 9)


@given(st.floats(20, 180), st.floats(20, 100), st.floats(-16, 16), st.floats(-16, 16))
def test_one_neighbour_never_covers_a_value(x: float, y: float, right: float, up: float) -> None:
    near = Box(x + right - 5, y + up - 5, x + right + 5, y + up + 5)
    assert choose((x, y), SIZE, [near], Box(-100, -100, 400, 400))[1].shared(near) == 0


def row(target: float, value: float, gmacs: float) -> dict[str, object]:
    about = {"stage": f"trim-{target}", "method": "smarttrim", "task": "statement", "split": "test"}
    return {**about, "target": target, "metric": "accuracy", "value": value, "gmacs": gmacs}


def test_values_of_points_close_together_are_not_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[float] = []

    def look(figure: Figure, *_: object) -> str:
        canvas = FigureCanvasAgg(figure)
        figure.draw_without_rendering()
        axes, radius = figure.axes[0], 3.5 * figure.dpi / 72  # of a marker
        values = [text for text in axes.texts if text.get_text() in ("80.5", "80.4", "81.0")]
        boxes = [text.get_window_extent(canvas.get_renderer()) for text in values]
        spots = [axes.transData.transform(text.xy) for text in values]  # type: ignore[attr-defined]
        markers = [Box(x - radius, y - radius, x + radius, y + radius) for x, y in spots]
        sides = [Box(*each.extents) for each in boxes]
        found.extend(one.shared(other) for one, other in itertools.combinations(sides, 2))
        found.extend(side.shared(marker) for side in sides for marker in markers)
        found.append(axes.get_ylim()[1] - axes.get_ylim()[0])
        return ""

    monkeypatch.setattr("launch.report.figures._svg", look)
    (table,) = group_results([row(1.0, 81.0, 0.020), row(2.0, 80.5, 0.0100), row(2.5, 80.4, 0.0091)])
    assert draw_pareto(table) is not None
    *shared, span = found
    assert len(shared) == 3 + 9 and set(shared) == {0.0}
    assert span >= pareto._LEAST_POINTS
