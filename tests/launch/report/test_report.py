import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.errors import UserError
from launch.report import write_report
from launch.report.pareto import draw_pareto
from launch.report.quoted import comparable, quoted
from launch.report.results import group_results
from pipeline.evaluation.unscored import note_unscored
from tests.launch.report.folders import instances, save


def text_of(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def missing(page: str) -> str:
    found = re.search(r'<aside class="missing".*?</aside>', page, re.S)
    return found.group() if found else ""


def test_a_finished_run_lacks_nothing(reported_run: Path) -> None:
    page = (reported_run / "report.html").read_text(encoding="utf-8")
    assert missing(page) == ""
    assert '<span class="state finished">' in page
    summary = (
        "8 min 12 s",
        "Example CPU @ 2.5 GHz, 2 CPUs, 7.8 GiB memory, 0 GPUs, Linux x86_64",
        "train 11,996, test 512, unseen 256, val 512",
        "2f1c0de000+changes",
    )
    details = ("demo.yaml --seed 7", "image cannot be decoded: 3", "image is truncated", "targets: [1.0, 1.5")
    for told in summary + details:
        assert told in page


def test_the_table_shows_values_intervals_cost_and_ratio(reported_run: Path) -> None:
    cells = re.sub(r"<[^>]+>|\s+", " ", (reported_run / "report.html").read_text(encoding="utf-8"))
    cells = re.sub(r" +", " ", cells)
    assert "smarttrim 2.0x test 80.1 (78.0 to 82.0) 40.0 (38.0 to 42.0) 0.0061 0.49" in cells


def test_nothing_in_the_page_points_outside(reported_run: Path) -> None:
    page = (reported_run / "report.html").read_text(encoding="utf-8")
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert {address[:5] for address in addresses if not address.startswith("#")} == {"data:"}
    assert "default-src 'none'" in page and "@import" not in page


def test_every_figure_has_its_numbers_in_a_file(reported_run: Path) -> None:
    names = {path.name for path in (reported_run / "figures").iterdir()}
    drawings = (
        "pareto-statement",
        "curves-pretrain",
        "curves-trim-statement-1.0x",
        "curves-trim-statement-2.0x",
        "cost-statement-test",
        "modules-statement-test",
        "retention-statement-test",
    )
    assert names - {"results.csv", "differences.csv", "survivors.csv"} == {
        f"{drawing}.{kind}" for drawing in drawings for kind in ("svg", "csv")
    }
    assert "currentColor" not in (reported_run / "figures" / "curves-pretrain.svg").read_text()


def test_surviving_patches_have_their_numbers_in_a_file(reported_run: Path) -> None:
    with (reported_run / "figures/survivors.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    last = [row for row in rows if row["layer"] == "vision layer 5" and row["model"] == "2.0x"
            and row["picture"] == "00012.png" and row["sentence"] == "there is a red circle at the top"]  # fmt: skip
    left = {8 * int(row["patch_row"]) + int(row["patch_column"]) for row in last if row["kept"] == "1"}
    assert len(last) == 64 and left == {9, 10, 11, 17, 18, 19, 25, 26, 27}
    struck = {row["word"] for row in rows if row["layer"] == "fusion layer 2" and row["kept"] == "0"}
    assert {"the", "top", "[SEP]"} <= struck


def test_the_table_has_its_numbers_in_a_file(reported_run: Path) -> None:
    with (reported_run / "figures/results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    wanted = json.loads((reported_run / "results.json").read_text())
    assert [(row["split"], row["metric"], float(row["value"])) for row in rows] == [
        (row["split"], row["metric"], row["value"]) for row in wanted
    ]


def test_a_second_report_of_the_same_run_has_the_same_bytes(reported_run: Path) -> None:
    before = (reported_run / "report.html").read_bytes()
    assert write_report(reported_run).read_bytes() == before


def test_an_unfinished_run_says_what_is_missing(unfinished_run: Path) -> None:
    page = text_of(unfinished_run)
    assert '<span class="state unfinished">' in page
    said = missing(page)
    untold = ("No results", "No trimmed models: no trim stage has begun", "No surviving patches")
    for sentence in ("or was cut off, after 10% of its work", *untold, "No data account", "run.json is not there"):
        assert sentence in said
    assert "curves-pretrain" in page and "step 10" in page


def test_a_recipe_without_trim_stages_says_that_it_asks_for_none(finished_run: Path) -> None:
    (finished_run / "config.yaml").write_text("trim:\n  targets: []\n")
    rows = json.loads((finished_run / "results.json").read_text())
    (finished_run / "results.json").write_text(json.dumps([row for row in rows if row["task"] == "retrieval"]))
    page = text_of(finished_run)
    assert "this recipe asks for none (trim.targets is empty)" in missing(page)
    assert 'class="state finished"' in page and "TR R@10" in page


def test_a_failed_stage_shows_its_error_and_the_end_of_its_log(unfinished_run: Path) -> None:
    folder = unfinished_run / "stages" / "pretrain"
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps({**status, "state": "failed", "error": "the disk is full"}))
    page = text_of(unfinished_run)
    assert "Stage pretrain failed after 10% of its work: the disk is full" in missing(page)
    assert "<details open>" in page


def test_results_of_finished_stages_are_shown_before_the_run_has_its_own(finished_run: Path) -> None:
    (finished_run / "results.json").replace(finished_run / "stages" / "evaluate" / "results.json")
    assert "smarttrim 2.0x" in text_of(finished_run)


def test_skips_that_only_the_jobs_result_tells_are_shown(unfinished_run: Path) -> None:
    (unfinished_run / "data" / "train").mkdir(parents=True)
    (unfinished_run / "data" / "train" / "index.json").write_text('{"account": {"asked": 3, "written": 3}}')
    (unfinished_run / "stages" / "pretrain" / "result.json").write_text('{"steps": 10, "skipped": 5}')
    page = re.sub(r"\s*<[^>]+>\s*", "|", text_of(unfinished_run))
    assert "|pretrain||all reasons||5|" in page


def test_splits_of_several_data_sets_are_in_the_account_by_their_whole_names(unfinished_run: Path) -> None:
    for name in ("coco/train", "nocaps/val"):
        (unfinished_run / "data" / name).mkdir(parents=True)
        (unfinished_run / "data" / name / "index.json").write_text('{"account": {"asked": 5, "written": 4}}')
    page = re.sub(r"\s*<[^>]+>\s*", "|", text_of(unfinished_run))
    assert re.search(r"\|coco/train\|+5\|+4\|", page) and "|nocaps/val|" in page


def test_texts_of_a_run_cannot_become_markup(finished_run: Path) -> None:
    facts = json.loads((finished_run / "run.json").read_text())
    evil = "</script><script>alert(1)</script>"
    (finished_run / "run.json").write_text(json.dumps({**facts, "name": evil, "command": evil}))
    path = finished_run / "stages" / "survivors" / "survivors.json"
    path.write_text(path.read_text().replace("there is a red", "</script><script>x"))
    assert text_of(finished_run).count("<script>") == 1


def test_a_folder_that_is_no_run_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run folder"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_report_needs_neither_torch_nor_ray() -> None:
    code = "import sys, launch.report; print(sorted({'torch', 'ray', 'deepspeed'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def plain(page: str) -> str:
    return re.sub(r"(\s|\|)*\|(\s|\|)*", "|", re.sub(r"<[^>]+>", "|", page))


def test_nothing_that_went_wrong_is_said_so(unfinished_run: Path) -> None:
    assert "No process was lost, nothing was started again" in text_of(unfinished_run)


def test_faults_are_told_with_what_followed_and_what_was_drawn_with_what_was_skipped(unfinished_run: Path) -> None:
    folder = unfinished_run / "stages" / "pretrain"
    (unfinished_run / "data" / "train").mkdir(parents=True)
    (unfinished_run / "data" / "train" / "index.json").write_text('{"account": {"asked": 3, "written": 3}}')
    status = json.loads((folder / "status.json").read_text())
    mix = {"coco/train": {"units": 113000, "share": 0.75, "epochs": 1.5}}
    outputs = {"left_out": 2, "skipped": 3, "bad_samples": {"image is truncated": 3}, "mix": mix}
    (folder / "status.json").write_text(json.dumps({**status, "restarts": 3, "outputs": outputs}))
    lost = {"detected": "2026-01-05T10:02:03.500+00:00", "why": "worker 1 lost", "step": 120, "workers": 2}
    (folder / "restarts.jsonl").write_text(json.dumps(lost) + "\n" + '{"detected": "2026')
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('\n{"step": 301, "loss": null, "non_finite": 4}\n')
    page = plain(text_of(unfinished_run))
    assert "|pretrain|2026-01-05 10:02:03 UTC|worker 1 lost|120|2|" in page
    assert "|the run was ended and started again, 2 times|" in page
    assert "|2 updates left out: a loss or a gradient was not a number|" in page
    assert "|4 values of the log were NaN or infinite|" in page
    assert "|pretrain|image is truncated|3|" in page and "all reasons" not in page
    assert "|pretrain|coco/train|113,000|0.75|1.5|" in page


def test_bad_updates_are_told_alike_of_a_run_that_is_over_and_of_one_that_is_not(unfinished_run: Path) -> None:
    folder = unfinished_run / "stages" / "pretrain"
    lines = [{"step": step, "detected": "2026-01-05T10:02:03+00:00", "why": "the loss is nan"} for step in (6, 6, 9)]
    lines[0]["back_to"] = 4
    (folder / "bad_updates.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    status = json.loads((folder / "status.json").read_text())
    for state, outputs in (("running", {}), ("done", {"left_out": 2})):
        (folder / "status.json").write_text(json.dumps({**status, "state": state, "outputs": outputs}))
        page = plain(text_of(unfinished_run))
        when = "|pretrain|2026-01-05 10:02:03 UTC|"
        assert f"{when}went back to the last checkpoint from update 6: the loss is nan|4|" in page
        assert f"{when}2 updates left out: a loss or a gradient was not a number (update 6, 9)|" in page
        assert page.count("left out:") == 1 and "No process was lost" not in page
    (folder / "status.json").write_text(json.dumps({**status, "state": "done", "outputs": {"left_out": 3}}))
    page = plain(text_of(unfinished_run))  # the first of them was before there was a list
    assert "3 updates left out: a loss or a gradient was not a number (of those known: update 6, 9)" in page


def test_samples_that_a_running_stage_skipped_are_in_the_account(unfinished_run: Path) -> None:
    (unfinished_run / "data" / "train").mkdir(parents=True)
    (unfinished_run / "data" / "train" / "index.json").write_text('{"account": {"asked": 3, "written": 3}}')
    listed = {"source": "train", "shard": "0.tar", "number": 1, "key": "k", "reason": "image is cut off", "step": 2}
    save(unfinished_run / "stages" / "pretrain" / "quarantine" / "rank-0.jsonl", json.dumps(listed) + "\n")
    save(unfinished_run / "stages" / "evaluate-pretrain" / "quarantine" / "rank-0.jsonl", json.dumps(listed) + "\n")
    page = plain(text_of(unfinished_run))
    assert "|pretrain|image is cut off|1|" in page
    assert "|evaluate-pretrain|image is cut off|" not in page  # nothing that training skipped


@pytest.mark.parametrize(
    "line", ["[1, 2]", "3", '{"source": "train"}', '{"source": [], "shard": "0.tar", "number": 1}']
)
def test_a_list_of_bad_samples_with_a_damaged_line_is_noted(unfinished_run: Path, line: str) -> None:
    save(unfinished_run / "stages" / "pretrain" / "quarantine" / "rank-0.jsonl", line + "\n")
    said = missing(text_of(unfinished_run))
    assert "stages/pretrain/quarantine cannot be read: a line of its lists names no sample" in said


def test_a_list_of_bad_samples_that_is_gone_when_it_is_read_is_noted(unfinished_run: Path) -> None:
    folder = unfinished_run / "stages" / "pretrain" / "quarantine"
    folder.mkdir()
    (folder / "rank-0.jsonl").symlink_to("gone")
    said = missing(text_of(unfinished_run))
    assert "stages/pretrain/quarantine cannot be read: No such file or directory" in said


def test_lines_of_a_log_that_went_bad_are_told(unfinished_run: Path) -> None:
    path = unfinished_run / "stages" / "pretrain" / "metrics.jsonl"
    assert "metrics.jsonl" not in missing(text_of(unfinished_run))
    path.write_text("no JSON\n" + path.read_text())
    said = "stages/pretrain/metrics.jsonl cannot be read: 1 of its lines hold no step and are left out"
    assert said in missing(text_of(unfinished_run))


def test_what_was_trimmed_comes_first(finished_run: Path) -> None:
    tasks = list(dict.fromkeys(row["task"] for row in json.loads((finished_run / "results.json").read_text())))
    assert tasks[0] == "retrieval" and len(tasks) > 1
    text = text_of(finished_run)
    summary = text[text.index('id="summary"') : text.index('id="stages"')]
    assert summary.index("statement") < summary.index("retrieval")


def test_an_emptied_file_of_scores_is_noted(finished_run: Path) -> None:
    (finished_run / "results.json").write_text("")
    assert "results.json cannot be read: holds nothing" in missing(text_of(finished_run))


def test_scores_that_nothing_could_compute_are_told_with_their_cause(finished_run: Path) -> None:
    rows = [row for row in json.loads((finished_run / "results.json").read_text()) if row["task"] == "retrieval"]
    (finished_run / "results.json").write_text(json.dumps(rows))
    assert "fewer than two models" in missing(text_of(finished_run))
    folder = finished_run / "stages" / "evaluate-trim-captioning-2.0x"
    save(folder / "status.json", {"state": "done"})
    save(folder / "results.json", [])
    said = missing(text_of(finished_run))  # of a run from before the cause was written down
    assert "No scores of trim-captioning-2.0x on any split: an older evaluation" in said and "fewer" not in said
    note_unscored(folder, "trim-captioning-2.0x", "coco/val", "caption metrics need Java: install one")
    said = missing(text_of(finished_run))
    assert "No scores of trim-captioning-2.0x on coco/val: caption metrics need Java: install one." in said
    assert "fewer than two models" not in said and "any split" not in said
    (finished_run / "results.json").write_text("[]")
    assert "No results" not in missing(text_of(finished_run))


def test_that_some_of_the_scores_are_lacking_is_told_beside_the_others(finished_run: Path) -> None:
    row = next(row for row in json.loads((finished_run / "results.json").read_text()) if row["stage"] != "pretrain")
    (finished_run / "results.json").write_text(json.dumps([row]))
    folder = finished_run / "stages" / f"evaluate-{row['stage']}"
    note_unscored(folder, row["stage"], row["split"], "2 of 4 pairs have no identifier")
    said = missing(text_of(finished_run))
    assert f"Not all scores of {row['stage']} on {row['split']}: 2 of 4 pairs have no identifier." in said
    assert "fewer than two models" in said, "that is another matter"


def test_a_damaged_note_of_scores_that_are_lacking_leaves_the_others(finished_run: Path) -> None:
    folder = finished_run / "stages" / "evaluate-trim-statement-2.0x"
    note_unscored(folder, "trim-statement-2.0x", "val", "2 of 4 pairs have no identifier")
    damaged = {"a": '{"model": "trim-statement-2.0x", "split": "test"}', "b": "[]", "c": '{"model": '}
    for name, text in damaged.items():
        (folder / "unscored" / f"{name}.json").write_text(text)
    said = missing(text_of(finished_run))
    assert "No scores of trim-statement-2.0x on val: 2 of 4 pairs have no identifier." in said
    for name in damaged:
        assert f"stages/{folder.name}/unscored/{name}.json cannot be read" in said


def test_what_trimming_does_with_instances_is_drawn_with_its_numbers(reported_run: Path) -> None:
    figures = reported_run / "figures"
    costs = list(csv.DictReader((figures / "cost-statement-test.csv").open()))
    assert [each["model"] for each in costs[::30]] == ["1.0x", "2.0x"]
    counted = {
        model: sum(int(row["instances"]) for row in costs if row["model"] == model) for model in ("1.0x", "2.0x")
    }
    assert counted == {"1.0x": 4, "2.0x": 4}
    assert (float(costs[-1]["mean_gmacs"]), float(costs[-1]["untrimmed_gmacs"])) == (pytest.approx(0.006125), 0.0124)
    modules = {(r["model"], r["module"]): r for r in csv.DictReader((figures / "modules-statement-test.csv").open())}
    assert float(modules["untrimmed", "vision"]["share"]) == pytest.approx(0.009 / 0.0124)
    assert float(modules["2.0x", "trimmers"]["gmacs"]) == 0.0001
    kept = list(csv.DictReader((figures / "retention-statement-test.csv").open()))
    assert len(kept) == 8 and {row["group"] for row in kept} == {"vision", "text", "msa", "mca"}
    assert {name: float(kept[0][name]) for name in ("q05", "q25", "q50", "q75", "q95")} == {
        "q05": 0.4, "q25": 0.45, "q50": 0.5, "q75": 0.5, "q95": 0.55,
    }  # fmt: skip
    drawn = (figures / "retention-statement-test.svg").read_text()
    sizes = [float(size) for size in re.findall(r"font(?:-size)?: ([\d.]+)px", drawn)]
    points = float(re.findall(r'width="([\d.]+)pt"', drawn)[0])
    assert points <= 7.1 * 72 and min(sizes) >= 7.0
    assert "from the 25th to the 75th percentile" in drawn
    page = (reported_run / "report.html").read_text(encoding="utf-8")
    assert 'said: true</span> <span class="label">right answer: false</span>' in page
    assert 'alt="picture judged against: the cheapest one' in page and 'alt="picture 2, whole; judged against: ' in page
    assert "picture of:" not in page and '<span class="label">right answer: false</span></p>' in page
    assert "the cheapest one is &lt;red&gt;" in page and "dearest, 0.0075 GMACs, 1.22 of the mean" in page


def test_runs_from_before_there_was_an_account_of_instances_say_how_to_get_it(finished_run: Path) -> None:
    shutil.rmtree(finished_run / "stages" / "evaluate" / "instances")
    assert f"trimline analyse trimming {finished_run}" in missing(text_of(finished_run))


def test_an_account_of_instances_that_cannot_be_used_is_named(finished_run: Path) -> None:
    folder = finished_run / "stages" / "evaluate" / "instances"
    path = folder / "trim-statement-2.0x-test.json"
    path.write_text(json.dumps({"target": 2.0}))
    value = instances(finished_run, 1.5, [0.005, 0.006])
    (folder / value["cheapest"][0]["image"]).write_bytes(b"no picture")
    said = missing(text_of(finished_run))
    assert f"instances/{path.name} does not tell of instances" in said
    assert "of the cheapest and dearest instances cannot be shown" in said


def test_published_figures_stand_beside_a_run_of_the_same_backbone_and_task(finished_run: Path) -> None:
    (finished_run / "config.yaml").write_text("model: {backbone: meter}\ntrim: {targets: [1.0]}\n")
    rows = [
        {**row, "task": "snli_ve", "split": f"snli_ve/{'dev' if row['split'] == 'test' else 'other'}"}
        for row in json.loads((finished_run / "results.json").read_text())
        if row["task"] == "statement"
    ]
    (finished_run / "results.json").write_text(json.dumps(rows))
    page = plain(text_of(finished_run))
    assert (
        "Published figures on snli_ve, for comparison" in page and "|SmartTrim 2.0x|dev|accuracy %|26.2|80.58|" in page
    )
    figure = finished_run / "figures" / "pareto-snli_ve.csv"
    assert all(row["quoted"] == "0" for row in csv.DictReader(figure.open()))  # a thousandth of the size


def test_published_points_are_drawn_where_models_are_of_one_size() -> None:
    rows = [
        {"stage": "s", "method": "smarttrim", "target": target, "task": "snli_ve", "split": "snli_ve/dev", "seed": 0,
         "metric": "accuracy", "value": 70.0, "gmacs": gmacs} for target, gmacs in ((1.0, 44.0), (2.0, 22.0))
    ]  # fmt: skip
    (table,) = group_results(rows)
    published = comparable(table, quoted("meter", "snli_ve"))
    assert {(row.label, row.gmacs, row.value) for row in published} >= {
        ("full 1.0x", 48.3, 80.87),
        ("FTKD 3.0x", 17.7, 72.97),
    }
    assert comparable(table, quoted("albef", "snli_ve")) == []
    (small,) = group_results([{**row, "gmacs": row["gmacs"] / 10} for row in rows])
    assert comparable(small, quoted("meter", "snli_ve")) == []
    drawing = draw_pareto(table, published=published)
    assert drawing is not None and "not measured here" in drawing.note
    drawn = [row for row in csv.DictReader(drawing.csv.splitlines()) if row["quoted"] == "1"]
    assert {row["split"] for row in drawn} == {"snli_ve/dev"} and len(drawn) == 6
    assert {row["on_front"] for row in drawn} == {"0"}


@pytest.mark.parametrize("target", ["90GMACs", 2.0])
def test_what_lies_right_of_all_that_was_measured_is_inside_of_its_panel(target: float | str) -> None:
    """A target that the models miss, and points of published models that are larger."""
    rows = [
        {"stage": "s", "method": "smarttrim", "target": wanted, "task": "snli_ve", "split": "snli_ve/dev", "seed": 0,
         "metric": "accuracy", "value": 70.0, "gmacs": cost} for wanted, cost in ((1.0, 26.0), (target, 20.0))
    ]  # fmt: skip
    (table,) = group_results(rows)
    drawing = draw_pareto(table, published=comparable(table, quoted("meter", "snli_ve")))
    assert drawing is not None
    left, width = map(float, re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', drawing.svg)[-1])
    # The clip path's rectangle is the panel; points are <use>, the names of targets <text>.
    points = [float(x) for x in re.findall(r'<use [^>]*?\bx="([\d.]+)"', drawing.svg)]
    names = [float(x) for x in re.findall(r'<text [^>]*?\bx="([\d.]+)"[^>]*>(?:90GMACs|2.0x)<', drawing.svg)]
    assert len(points) > 8 and len(names) == 1 and max(*points, *names) < left + width


def test_what_trimming_costs_on_the_same_instances_is_shown(finished_run: Path) -> None:
    (finished_run / "stages/evaluate-trim-statement-3.0x/outcomes/trim-statement-3.0x-test.npz").unlink()
    page = text_of(finished_run)
    cells = re.sub(r"(\s|\|)*\|(\s|\|)*", "|", re.sub(r"<[^>]+>", "|", page))
    assert "|statement 2x test accuracy|own 1.0x|-25.00 (-50.00 to +0.00)|4|2|" in cells
    assert "|statement 2x unseen consistency|own 1.0x|-50.00 (" in cells
    assert "statement 1x test accuracy" not in page and "statement 3x test accuracy" not in page
    assert "2 of 12 differences have no paired interval" in missing(page)
