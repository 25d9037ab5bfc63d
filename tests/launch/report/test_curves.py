import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from launch.report.curve_figures import TITLES, draw_curve, draw_speed
from launch.report.curves import Curve, queue_begins, read_curve, thin
from launch.report.figures import Drawing


def write(path: Path, entries: list[dict[str, float]], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + tail)
    return path


def curve_of(steps: int) -> Curve:
    step = np.arange(1.0, steps + 1)
    return Curve(columns={"step": step, "loss": 1 / step}, resumed_at=(), broken_lines=0)


def drawn_of(curve: Curve, queue_at: float | None = None, grad_clip: float | None = None) -> Drawing:
    drawing = draw_curve("a", curve, queue_at, grad_clip)
    assert drawing is not None
    return drawing


def columns_of(**values: np.ndarray) -> Curve:
    steps = len(next(iter(values.values())))
    return Curve(columns={"step": np.arange(1.0, steps + 1), **values}, resumed_at=(), broken_lines=0)


def test_a_step_done_again_after_a_restart_counts_once(tmp_path: Path) -> None:
    first = [{"step": step, "loss": 1.0} for step in (1, 2, 3, 4, 5)]
    again = [{"step": step, "loss": 2.0} for step in (4, 5, 6)]
    curve = read_curve(write(tmp_path / "m", first + again))
    assert curve is not None
    assert curve.columns["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert curve.columns["loss"].tolist() == [1, 1, 1, 2, 2, 2]
    assert curve.resumed_at == (4,)


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    curve = read_curve(write(tmp_path / "m", [{"step": 1, "loss": 3.0}], tail='{"step": 2, "lo'))
    assert curve is not None
    assert curve.columns["step"].tolist() == [1] and curve.broken_lines == 0


def test_lines_that_went_bad_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "m").write_text('{"step": 1, "lo\n\n{"step": null}\n[2]\n{"step": 3, "loss": 2.0}\n')
    curve = read_curve(tmp_path / "m")
    assert curve is not None
    assert curve.columns["step"].tolist() == [3] and curve.broken_lines == 3


def test_no_step_is_no_curve(tmp_path: Path) -> None:
    assert read_curve(tmp_path / "absent") is None
    assert read_curve(write(tmp_path / "m", [], tail="\n")) is None


def test_scalars_that_come_seldom_leave_gaps_not_zeros(tmp_path: Path) -> None:
    entries = [{"step": 1, "loss": 1.0, "val": 0.5}, {"step": 2, "loss": 1.0}]
    curve = read_curve(write(tmp_path / "m", entries))
    assert curve is not None
    assert np.isnan(curve.columns["val"][1]) and curve.last("val") == 0.5


def test_the_loss_and_its_parts_come_first_and_then_the_learning_rate(tmp_path: Path) -> None:
    entry = {"step": 1, "grad_norm": 1.0, "lr": 0.1, "loss/itm": 1.0, "loss": 2.0, "loss/itc": 1.0}
    curve = read_curve(write(tmp_path / "m", [entry]))
    assert curve is not None
    assert curve.scalars == ["loss", "loss/itc", "loss/itm", "lr", "grad_norm"]


@given(st.integers(1, 1000), st.integers(1, 200))
def test_thinning_keeps_the_end_the_limit_and_the_mean(steps: int, points: int) -> None:
    curve = curve_of(steps)
    columns, per_point = thin(curve, points)
    assert len(columns["step"]) <= points
    assert columns["step"][-1] == steps
    sizes = np.diff(np.append(0, columns["step"]))
    assert sizes.max() == per_point
    assert np.dot(columns["loss"], sizes) == pytest.approx(curve.columns["loss"].sum())


def test_the_figure_and_its_csv_hold_the_same_points() -> None:
    drawing = drawn_of(curve_of(4))
    assert drawing.csv.splitlines() == ["step,loss", "1,1", "2,0.5", f"3,{1 / 3}", "4,0.25"]
    assert drawing.svg.startswith("<svg") and "loss, all parts" in drawing.svg


def test_the_same_numbers_give_the_same_bytes() -> None:
    assert drawn_of(curve_of(300)) == drawn_of(curve_of(300))


def test_two_figures_of_a_page_share_no_ids() -> None:
    drawings = (draw_curve(name, curve_of(9)) for name in "ab")
    first, second = (re.findall(r'id="([^"]+)"', drawing.svg) for drawing in drawings if drawing)
    assert first and not set(first) & set(second)


def test_odd_names_are_drawn_as_they_are() -> None:
    curve = Curve(columns={"step": np.ones(1), "<b>$x^{": np.ones(1)}, resumed_at=(), broken_lines=0)
    drawing = draw_curve('"<&', curve)
    assert drawing is not None and "&lt;b&gt;$x^{" in drawing.svg


def test_the_step_from_which_the_queue_serves_is_marked_where_it_is_known() -> None:
    columns = {"step": np.arange(1.0, 11), "alpha": np.zeros(10)}
    curve = Curve(columns=columns, resumed_at=(), broken_lines=0)
    config = {"pretrain": {"objectives": {"queue": 240, "queue_start": 0.5}}, "budget": {"minutes": None}}
    at = queue_begins(config, curve)
    assert at == 5.0
    note = drawn_of(curve, at).note
    assert "Dashed line at step 5: from there on the queue" in note and "expected to jump" in note
    for other in (
        {**config, "budget": {"minutes": 3}},
        {"pretrain": {"objectives": {"queue": 0}}},
        {"pretrain": 1},
        {},
    ):
        assert queue_begins(other, curve) is None
    assert queue_begins(config, curve_of(10)) is None  # no momentum tower, no queue


def test_what_fine_tuning_logs_has_plain_titles() -> None:
    names = ("cost_share", "wanted", "kept/vision", "kept/mca", "shift/text", "grad_norm")
    drawing = drawn_of(columns_of(**{name: np.ones(3) for name in names}))
    assert not any(f">{name}</text>" in drawing.svg for name in names)
    assert ">wanted share</text>" in drawing.svg and "what each group is asked to keep" in drawing.note


def test_speed_and_memory_stand_in_a_figure_of_their_own() -> None:
    curve = columns_of(loss=np.ones(3), read_ms=np.ones(3), memory_gib=np.ones(3), noise_scale=np.ones(3))
    assert drawn_of(curve).columns == ("step", "loss")
    speed = draw_speed("a", curve)
    assert speed is not None and speed.name == "curves-a-speed"
    assert set(speed.columns) == {"step", "memory_gib", "read_ms", "noise_scale"}
    assert "Noise scale: " in speed.note and "Critical batch" not in speed.note
    assert draw_speed("a", curve_of(3)) is None and draw_curve("a", columns_of(read_ms=np.ones(3))) is None


LOGGED = (  # as they are called in metrics.jsonl, without a title of ours
    *(f"loss/{part}" for part in ("itc", "itm", "mlm", "lm", "task", "cost", "full", "divergence", "hidden")),
    *("loss/attention", "loss/logits", "temperature", "shift", "validation/accuracy", "validation/consistency"),
    *("validation/cost", "validation/R@10", "validation/CIDEr"),
)


def test_every_title_fits_its_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    wide: dict[str, float] = {}

    def measured(figure: Figure, **_: object) -> None:
        canvas = FigureCanvasAgg(figure)
        for axes in figure.axes:
            title = axes._left_title  # type: ignore[attr-defined]  # the one that loc="left" sets
            extent = title.get_window_extent(canvas.get_renderer())
            wide[title.get_text()] = extent.width / axes.get_window_extent().width

    monkeypatch.setattr("launch.report.figures._svg", lambda figure, *_: measured(figure) or "")
    curve = columns_of(**{name: np.ones(2) for name in (*TITLES, *LOGGED)})
    draw_curve("a", curve)
    draw_speed("a", curve)
    assert set(TITLES.values()) < set(wide) and len(wide) == len(TITLES) + len(LOGGED)
    assert {title: share for title, share in wide.items() if share > 1} == {}


def test_the_note_says_whose_samples_the_numbers_are_of() -> None:
    pace = {"samples_per_second": np.full(3, 20.0), "samples_per_second_per_device": np.full(3, 10.0)}
    of_two = drawn_of(columns_of(loss=np.ones(3), **pace)).note
    assert "mean over all processes; its parts and accuracy are of the first one's samples" in of_two
    assert "a line is the mean over the steps since the one before" in of_two
    pace["samples_per_second_per_device"] = np.full(3, 20.0)
    assert "processes" not in drawn_of(columns_of(loss=np.ones(3), **pace)).note


@pytest.mark.parametrize(
    ("grad_clip", "told"), [(None, "before any clipping"), (1.0, "before clipping to 1."), (0.0, "are not clipped")]
)
def test_it_is_told_whether_gradients_are_clipped(grad_clip: float | None, told: str) -> None:
    note = drawn_of(columns_of(grad_norm=np.ones(3)), grad_clip=grad_clip).note
    assert told in note and ("is the one before" in note) == (grad_clip != 0)


@pytest.mark.parametrize(
    ("norms", "scale"), [((1.0, 101.0), "log"), ((1.0, 100.0), "linear"), ((0.0, 101.0), "linear")]
)
def test_norms_of_gradients_that_spread_far_are_drawn_by_their_logarithm(
    monkeypatch: pytest.MonkeyPatch, norms: tuple[float, float], scale: str
) -> None:
    seen: list[tuple[str, tuple[float, float]]] = []

    def look(figure: Figure, *_: object) -> str:
        seen.extend((axes.get_yscale(), axes.get_xlim()) for axes in figure.axes)
        return ""

    monkeypatch.setattr("launch.report.figures._svg", look)
    drawn_of(columns_of(loss=np.array([np.nan, 1.0]), grad_norm=np.array(norms)))
    assert [scale for scale, _ in seen] == ["linear", scale]
    assert seen[0][1] == seen[1][1] == pytest.approx((0.95, 2.05))
