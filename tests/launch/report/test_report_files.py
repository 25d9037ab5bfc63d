"""What a report does with files that are damaged, and with figures that others left in the run folder."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from launch.analyse_layers import _drawing
from launch.report import write_report
from launch.report.figures import Drawing
from launch.report.instances import _kept_panel, bar_drawing
from tests.launch.report.folders import save
from tests.launch.report.test_report import missing, text_of


@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_layers_are_whole_numbers(count: int) -> None:
    place: dict[str, Any] = {"part": "vision", "stream": "image", "metric": "tokens", "value": 0.5}
    place |= {"samples": 4, "pictures": 4, "groups": 2}
    places = [place | dict.fromkeys(("low", "lower", "mean", "upper", "high"), 0.5) | {"layer": at}
              for at in range(count)]  # fmt: skip
    axes = Figure().subplots()
    _kept_panel(axes, places)
    assert all(float(tick).is_integer() for tick in axes.get_xticks())
    drawn = _drawing("n", "t", "n", places, {}).svg
    below = drawn[: drawn.index("layer, from 0")]  # the ticks of x come before its name
    assert all("." not in tick for tick in re.findall(r">(-?[\d.]+)</text>", below))


def test_files_that_cannot_be_read_are_named(finished_run: Path) -> None:
    (finished_run / "results.json").write_text("[{")
    (finished_run / "run.json").write_text("[]")
    (finished_run / "config.yaml").write_text("a: [")
    (finished_run / "stages" / "survivors" / "00012.png").write_bytes(b"")
    row = {"task": "statement", "metric": "accuracy", "method": "mine"}
    save(finished_run / "stages" / "evaluate" / "results.json", [7, row | {"target": 2.0}, row | {"target": "fast"}])
    page = text_of(finished_run)
    said = missing(page)
    for name in ("results.json", "run.json", "config.yaml", "00012.png"):
        assert name in said
    assert "stages/evaluate/results.json cannot be read: 1 of its rows name no task and metric" in said
    assert "the target of 1 of its rows, &#39;fast&#39; the first, which are left out" in said
    assert "mine 2.0x" in page and "mine fast" not in page


def test_values_of_wrong_types_are_named_and_left_out(finished_run: Path) -> None:
    def change(name: str, **more: object) -> None:
        path = finished_run / name
        save(path, {**(json.loads(path.read_text()) if path.exists() else {}), **more})

    change("run.json", seed="x", stages=1, command=5, seconds="long")
    change("data/train/index.json", account=5)
    change("data/test/index.json", account={"asked": "x", "skipped": {"no text": "many"}}, shardlist=3)
    change("stages/pretrain/status.json", restarts="two", outputs={"mix": {"train": 7}}, started=1e300)
    change("stages/evaluate/status.json", outputs=[3], seconds={})
    change("stages/pretrain/result.json", left_out="some")
    save(finished_run / "stages/pretrain/bad_updates.jsonl", '{"step": 5, "back_to": "start"}\n')
    save(finished_run / "stages/survivors/survivors.json", [5, {"image": "a.png"}, {"image": "a.png", "sentences": 3}])
    rows = json.loads((finished_run / "results.json").read_text())
    rows[0] |= {"seed": "x", "value": [], "samples": "all"}
    save(finished_run / "results.json", rows)
    save(finished_run / "config.yaml", "trim: {targets: 3}\ntasks: 4\nmodel: [5]\nbudget: 1\npretrain: 2\n")
    said = missing(text_of(finished_run)).replace("&#39;", "'")
    for told in ("run.json cannot be read: its 'seed' cannot be 'x'", "its 'stages' cannot be 1",
                 "'command' cannot be 5", "data/train/index.json cannot be read: its 'account' cannot be 5",
                 "its 'skipped' cannot be {'no text'",
                 "its 'shardlist' cannot be 3", "its 'restarts' cannot be 'two'", "its 'left_out' cannot be 'some'",
                 "its 'back_to' cannot be 'start'", "results.json cannot be read: its 'seed' cannot be 'x'",
                 "an entry of survivors.json does not tell of a picture"):  # fmt: skip
        assert told in said


def test_the_summary_says_what_ran_and_explains_only_what_is_there(finished_run: Path) -> None:
    model = "model: {backbone: albef, vision: {width: 64, depth: 12, width_px: 96}}\n"
    trim = "trim: {method: smarttrim, task: statement, targets: [1.0, 2.0]}\npretrain: {pruning: {method: elip}}\n"
    save(finished_run / "config.yaml", model + trim)
    page = text_of(finished_run)
    told = {"Backbone": "albef, 64 wide, 12 vision layers, 96 px", "Pruning in pre-training": "elip"}
    told |= {"Trimming": "smarttrim", "Task": "statement", "Targets": "1.0x, 2.0x"}
    for name, text in told.items():
        assert f"<dt>{name}</dt><dd>{text}</dd>" in page
    assert "By pruning" not in page and "R@10 is the mean of TR R@10 and IR R@10" in page
    assert "those of analyses in <code>analyses/</code>" in page


def test_analyses_that_are_not_there_are_named_as_they_can_be_made(finished_run: Path) -> None:
    assert "<code>attention --against WEIGHTS</code>" in text_of(finished_run)  # it began from nothing
    for part in ("vision", "model"):
        save(finished_run / "config.yaml", f"pretrain: {{init: {{{part}: vit.safetensors}}}}\n")
        assert "<code>attention</code>" in text_of(finished_run)


def test_the_figures_of_analyses_are_shown_and_others_are_refused(unfinished_run: Path) -> None:
    drawing = bar_drawing("flops-vqa", "where <it> goes", 'a "note" & more', {"a": {"vision": 1.0, "text": 3.0}})
    folder = unfinished_run / "analyses"
    drawing.save(folder)
    assert Drawing.load(folder / "flops-vqa.svg").svg == drawing.svg
    svg = (folder / "flops-vqa.svg").read_text()
    for name, end in (("script", "<script>1</script></svg>"), ("far", '<g href="https://example.org"/></svg>')):
        (folder / f"{name}.svg").write_text(svg.replace("</svg>", end))
        (folder / f"{name}.csv").write_text("a\n1\n")
    (folder / "alone.svg").write_text(svg)
    (folder / "cut.svg").write_text(svg[:200])
    (folder / "cut.csv").write_text("")
    page = text_of(unfinished_run)
    assert 'id="figure-analysis-flops-vqa"' in page and "where &lt;it&gt; goes" in page and page.count("<script>") == 1
    for name in ("script", "far", "alone", "cut"):
        assert f"analyses/{name}.svg cannot be shown" in missing(page) and f"figure-{name}" not in page


def test_figures_of_evaluation_and_of_an_analysis_stand_apart_in_one_page(finished_run: Path) -> None:
    write_report(finished_run)
    for path in (finished_run / "figures").glob("*-statement-test.*"):
        if path.name.startswith(("cost-", "modules-", "retention-")):  # an older trimline's had the very same titles
            save(finished_run / "analyses" / path.name, path.read_text().replace(" (evaluation, 4 instances)", ""))
    page = text_of(finished_run)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) and "figure-analysis-cost-statement-test" in ids
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(ids)
    titles = re.findall(r"<figcaption><b>(.*?)\.</b>", page)
    downloads = re.findall(r'download="([^"]+)"', page)
    assert len(titles) == len(set(titles)) == len(downloads) == len(set(downloads)) == 10
    assert "statement, test: cost of instances (evaluation, 4 instances)" in titles
    assert "statement, test: cost of instances (analysis)" in titles
