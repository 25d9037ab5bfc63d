import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.errors import UserError
from launch.report import write_report


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
    )
    assert names == {f"{drawing}.{kind}" for drawing in drawings for kind in ("svg", "csv")}
    assert "currentColor" not in (reported_run / "figures" / "curves-pretrain.svg").read_text()


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


def test_files_that_cannot_be_read_are_named(finished_run: Path) -> None:
    (finished_run / "results.json").write_text("[{")
    (finished_run / "run.json").write_text("[]")
    (finished_run / "config.yaml").write_text("a: [")
    (finished_run / "stages" / "survivors" / "00012.png").write_bytes(b"")
    said = missing(text_of(finished_run))
    for name in ("results.json", "run.json", "config.yaml", "00012.png"):
        assert name in said


def test_results_of_finished_stages_are_shown_before_the_run_has_its_own(finished_run: Path) -> None:
    (finished_run / "results.json").replace(finished_run / "stages" / "evaluate" / "results.json")
    assert "smarttrim 2.0x" in text_of(finished_run)


def test_skips_that_only_the_jobs_result_tells_are_shown(unfinished_run: Path) -> None:
    (unfinished_run / "data" / "train").mkdir(parents=True)
    (unfinished_run / "data" / "train" / "index.json").write_text('{"account": {"asked": 3, "written": 3}}')
    (unfinished_run / "stages" / "pretrain" / "result.json").write_text('{"steps": 10, "skipped": 5}')
    page = re.sub(r"\s*<[^>]+>\s*", "|", text_of(unfinished_run))
    assert "|pretrain||all reasons||5|" in page


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
