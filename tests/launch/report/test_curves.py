import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.report.curves import Curve, draw_curve, queue_begins, read_curve, thin


def write(path: Path, entries: list[dict[str, float]], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + tail)
    return path


def curve_of(steps: int) -> Curve:
    step = np.arange(1.0, steps + 1)
    return Curve(columns={"step": step, "loss": 1 / step}, resumed_at=(), broken_lines=0)


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
    drawing = draw_curve("pretrain", curve_of(4))
    assert drawing.csv.splitlines() == ["step,loss", "1,1", "2,0.5", f"3,{1 / 3}", "4,0.25"]
    assert drawing.svg.startswith("<svg") and "loss, all parts" in drawing.svg


def test_the_same_numbers_give_the_same_bytes() -> None:
    assert draw_curve("a", curve_of(300)) == draw_curve("a", curve_of(300))


def test_two_figures_of_a_page_share_no_ids() -> None:
    first, second = (re.findall(r'id="([^"]+)"', draw_curve(name, curve_of(9)).svg) for name in "ab")
    assert first and not set(first) & set(second)


def test_odd_names_are_drawn_as_they_are() -> None:
    curve = Curve(columns={"step": np.ones(1), "<b>$x^{": np.ones(1)}, resumed_at=(), broken_lines=0)
    assert "&lt;b&gt;$x^{" in draw_curve('"<&', curve).svg


def test_the_step_from_which_the_queue_serves_is_marked_where_it_is_known() -> None:
    columns = {"step": np.arange(1.0, 11), "alpha": np.zeros(10)}
    curve = Curve(columns=columns, resumed_at=(), broken_lines=0)
    config = {"pretrain": {"objectives": {"queue": 240, "queue_start": 0.5}}, "budget": {"minutes": None}}
    at = queue_begins(config, curve)
    assert at == 5.0
    assert "Dashed line at step 5: from there on the queue" in draw_curve("pretrain", curve, at).note
    for other in (
        {**config, "budget": {"minutes": 3}},
        {"pretrain": {"objectives": {"queue": 0}}},
        {"pretrain": 1},
        {},
    ):
        assert queue_begins(other, curve) is None
    assert queue_begins(config, curve_of(10)) is None  # no momentum tower, no queue


def test_what_fine_tuning_logs_has_plain_titles() -> None:
    names = (
        "cost_share",
        "wanted",
        "kept/vision",
        "kept/mca",
        "shift/text",
        "grad_norm",
        "noise_scale",
        "critical_batch",
    )
    columns = {"step": np.arange(3.0), **{name: np.ones(3) for name in names}}
    drawn = draw_curve("trim", Curve(columns=columns, resumed_at=(), broken_lines=0)).svg
    assert not any(f">{name}</text>" in drawn for name in names)
    assert ">share that each group is asked to keep</text>" in drawn
