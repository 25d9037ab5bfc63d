"""The report of a scale experiment: one file, its figures, and the command that writes it anew."""

import json
from pathlib import Path

import pytest

from launch.cli import main
from launch.report.scale import scale_text, write_scale_report
from launch.report.scale_figures import curve_looks, scale_figures
from tests.launch.scaled import whole


def test_the_report_is_one_file_with_every_figure_and_the_sentence(tmp_path: Path) -> None:
    data = whole()
    page = write_scale_report(tmp_path, data).read_text()
    assert data["recommendation"] in page and "&lt;2 GiB&gt;" in page and "b9-off: left out: no multiple" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")  # nothing is fetched
    drawn = {path.stem for path in (tmp_path / "figures").glob("*.csv")}
    wanted = {"throughput", "memory", "efficiency", "loss", "goal", "noise", "critical", "largest", "saved"}
    assert drawn == {f"scale-{name}" for name in wanted}
    assert page.count("<figure") == len(wanted)
    text = scale_text(data)
    assert "b128-off: out of memory: <2 GiB>" in text and text.endswith(data["recommendation"])
    assert "largest micro-batch within" in text and "ZeRO" not in text  # a column that says the same of all


def test_curves_are_told_apart_without_colours() -> None:
    curves = {f"b{batch}-{name}": {"global_batch": batch, "pruning": name} for batch in (32, 64, 128)
              for name in ("off", "query")}  # fmt: skip
    for some in (curves, {name: curve for name, curve in curves.items() if curve["pruning"] == "off"}):
        looks = {(dashes, marker) for _, dashes, marker in curve_looks(some).values()}
        assert len(looks) == len(some)
    alone = [
        look[1:] for look in curve_looks({name: curve for name, curve in curves.items() if "off" in name}).values()
    ]
    assert all(len(set(kind)) == 3 for kind in zip(*alone, strict=True))  # markers and lines both
    (again,) = [drawing for drawing in scale_figures(whole()) if drawing.name == "scale-saved"]
    assert len(again.rows) == 2 and "<pattern" not in again.svg  # one part has no hatch
    data = whole()
    for entry in data["largest"]["found"]:
        entry["saved_bytes"] = {"visual_encoder": 8.0, "text_encoder": 4.0}
    assert "<pattern" in next(drawing.svg for drawing in scale_figures(data) if drawing.name == "scale-saved")


def test_the_command_writes_the_report_anew_from_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scale.json").write_text(json.dumps(whole()))
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert whole()["recommendation"] in (tmp_path / "report.html").read_text()
    assert (tmp_path / "figures/scale-loss.csv").is_file() and not (tmp_path / "trials").exists()


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ({"scale.yaml": "name: t"}, "has no scale.json yet"),
        ({"scale.json": "[]"}, "is not as `trimline scale` writes it"),
        ({"scale.json": json.dumps({**whole(), "rows": [{"name": "b8-off"}]})}, "is not as `trimline scale` writes it"),
        ({"scale.json": "{"}, "does not hold valid JSON"),
    ],
)
def test_what_no_report_can_be_made_of_is_said_in_a_line(
    there: dict[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in there.items():
        (tmp_path / name).write_text(text)
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and "trimline scale" in error
