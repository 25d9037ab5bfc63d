"""Tasks from the command line: drawn in published files, sharded, a whole run, scored from its result files."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from data_prep.shapes_published import PUBLISHED
from launch.cli import main
from launch.cli_data import DRAWN as OFFERED
from pipeline.data.shards import ShardFolder
from pipeline.metrics.captions import MEANS, has_spice
from pipeline.models.config import BackboneName
from tests.launch.drawn import drawn_root
from tests.pipeline.small import OTHER_BACKBONES

TINY = str(Path(__file__).with_name("tiny.yaml"))
DRAWN = {
    "vqa": ("train=60", "val=10"),
    "snli_ve": ("train=24", "dev=8", "test=8"),
    "nlvr2": ("train=12", "dev=2", "test1=4"),
}
GOLD = {"vqa": {"val": "v2_mscoco_val2014_annotations.json"},
        "snli_ve": {"dev": "snli_ve_dev.jsonl", "test": "snli_ve_test.jsonl"},
        "nlvr2": {"dev": "dev.json", "test1": "test1.json"}}  # fmt: skip


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("task", list(DRAWN))
def test_a_drawn_task_goes_through_a_whole_run_and_its_file_has_the_runs_scores(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, run = tmp_path / "raw", tmp_path / "run"
    root = drawn_root(partial(answer, capsys), tmp_path, task, DRAWN[task])
    words = ["--data.root", str(root), "--data.sizes", "{}", "--out", str(run), "--trim.answers.at_least", "5"]
    done = answer(capsys, "run", TINY, f"configs/tasks/{task}.yaml", *words)
    assert {f"trim-{task}-1.0x", f"trim-{task}-2.0x"} <= done["stages"].keys()
    rows = [row for row in json.loads((run / "results.json").read_text()) if row["task"] == task]
    for stage in (f"trim-{task}-1.0x", f"trim-{task}-2.0x"):
        for split, gold in GOLD[task].items():
            (file,) = (run / "stages" / f"evaluate-{stage}" / "predictions").glob(f"*-{task}-{split}.*")
            given = ["--predictions", str(file), "--annotations", str(raw / gold)]
            scores = answer(capsys, "score", task, *given)["scores"]
            own = [row for row in rows if row["stage"] == stage and row["split"] == f"{task}/{split}"]
            wanted = [(score["metric"], score["value"], score["low"], score["high"]) for score in scores]
            assert [(row["metric"], row["value"], row["low"], row["high"]) for row in own] == wanted
            export, data = run / "stages" / stage / "export", str(root / task)
            again = answer(capsys, "evaluate", str(export), "--task", task, "--data", data, "--split", split)
            assert [(score["metric"], score["value"]) for score in again["scores"]] == [each[:2] for each in wanted]
    words = json.loads((run / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    assert ("how" in words) == (task == "vqa")
    two = task == "nlvr2"
    pictures = sorted(map(str, raw.rglob("*.png" if two else "*.jpg")))[: 1 + two]
    export = str(run / "stages" / f"trim-{task}-2.0x" / "export")
    shown = [word for picture in pictures for word in ("--image", picture)]
    said = answer(capsys, "predict", export, *shown, "--text", "is there a star?", "--device", "cpu")["predictions"]
    assert said[0]["answer"] and ("true" in said[0]) == two and said[0].get("images") == (pictures if two else None)
    shutil.rmtree(run)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_captions_go_through_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, run = tmp_path / "raw", tmp_path / "run"
    root = drawn_root(partial(answer, capsys), tmp_path, "coco", ("train=24", "val=6"))
    words = ["--data.root", str(root), "--data.sizes", "{}", "--out", str(run)]
    words += ["--evaluate.statement_splits", "[coco/val]"]
    done = answer(capsys, "run", TINY, "configs/tasks/drawn_blip.yaml", "configs/tasks/captioning.yaml", *words)
    assert [row["metric"] for row in done["paired"]] == [one for one in MEANS if one != "SPICE" or has_spice()]
    assert "captioning 2x coco/val CIDEr" in (run / "report.html").read_text()
    rows = [row for row in json.loads((run / "results.json").read_text()) if row["task"] == "captioning"]
    for stage in ("trim-captioning-1.0x", "trim-captioning-2.0x"):
        (file,) = (run / "stages" / f"evaluate-{stage}" / "predictions").glob("*-coco-val.json")
        given = ["--predictions", str(file), "--annotations", str(raw / "captions_val2014.json")]
        scores = answer(capsys, "score", "captions", *given)["scores"]
        told = [[each[name] for name in ("metric", "value", "low", "high")] for each in scores]
        own = [row for row in rows if row["stage"] == stage]
        assert [[row[name] for name in ("metric", "value", "low", "high")] for row in own] == told
        export = str(run / "stages" / stage / "export")
        said = answer(capsys, "predict", export, "--image", str(next(raw.rglob("*.jpg"))), "--beams", "1")
        assert said["predictions"][0]["caption"]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("backbone", ["albef", "meter"])
def test_retrieval_goes_through_a_whole_run(
    backbone: BackboneName, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, root, run = tmp_path / "raw", tmp_path / "root", tmp_path / "run"
    answer(capsys, "draw", "coco", "--out", str(raw), "--size", "train=16", "--size", "val=6", "--image-size", "32")
    answer(capsys, "shard", "coco", "--root", str(raw), "--out", str(root / "coco"), "--workers", "1")
    words = ["--data.root", str(root), "--data.sizes", "{}", "--out", str(run), "--pretrain.loop.samples", "16"]
    words += ["--pretrain.splits", '{"coco/train": 1.0}', "--trim.targets", "[1.5]", "--trim.loop.samples", "16"]
    given = [TINY, "configs/tasks/retrieval.yaml", *words]
    for key, value in {"backbone": backbone, **OTHER_BACKBONES.get(backbone, {})}.items():
        given += [f"--model.{key}", value if isinstance(value, str) else json.dumps(value)]
    answer(capsys, "run", *given)
    rows = json.loads((run / "results.json").read_text())
    stages = ["pretrain", "trim-retrieval-1.5x"]
    assert list(dict.fromkeys(row["stage"] for row in rows)) == stages
    assert {(row["task"], row["split"], row["samples"]) for row in rows} == {("retrieval", "coco/val", 6)}
    before, after = ([row for row in rows if row["stage"] == stage] for stage in stages)
    assert [row["metric"] for row in before] == [row["metric"] for row in after]
    assert after[0]["gmacs"] < after[0]["full_gmacs"] == pytest.approx(before[0]["gmacs"])
    report = (run / "report.html").read_text()
    assert "retrieval: mean recall % against computation" in report and "does not tell what became" not in report


def test_flickr30k_is_drawn_and_sharded_in_all_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, out, sizes = tmp_path / "raw", tmp_path / "out", {"train": 6, "val": 2, "test": 3}
    words = [word for split, size in sizes.items() for word in ("--size", f"{split}={size}")]
    assert answer(capsys, "draw", "flickr30k", "--out", str(raw), *words, "--image-size", "32")["sizes"] == sizes
    answer(capsys, "shard", "flickr30k", "--root", str(raw), "--out", str(out), "--workers", "1")
    splits = {folder.name: ShardFolder(folder) for folder in out.iterdir()}
    assert {name: len(split) for name, split in splits.items()} == sizes
    assert {len(split.read(row).fields["captions"]) for split in splits.values() for row in range(len(split))} == {5}


@pytest.mark.parametrize("name", ["shapes", "shards"])
@pytest.mark.parametrize(
    ("task", "wanted"),
    [("vqa", "annotators' answers"), ("snli_ve", "with a relation"), ("nlvr2", "about pairs of pictures")],
)
def test_data_without_a_tasks_labels_is_refused_before_anything_runs(
    task: str, wanted: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--trim.task", task, "--out", str(tmp_path / "run")]
    if name == "shards":
        few = json.dumps({"train": 4, "val": 0, "test": 2, "unseen": 0})
        answer(capsys, "shard", "shapes", "--out", str(tmp_path / "data"), "--sizes", few, "--workers", "1")
        words += ["--data.name", "shards", "--data.root", str(tmp_path / "data"), "--data.sizes", "{}"]
    assert main(["run", TINY, *words]) == 2
    told = capsys.readouterr().err
    assert wanted in told and f"'train' of data.name={name}" in told and told.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_all_that_can_be_drawn_is_offered() -> None:
    assert OFFERED == PUBLISHED


def test_what_cannot_be_drawn_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for said, size in (("--size train is not SPLIT=N", "train"), ("has no split 'dev'", "dev=4")):
        assert main(["draw", "vqa", "--out", str(tmp_path / "out"), "--size", size]) == 2
        told = capsys.readouterr().err
        assert said in told and told.count("\n") == 1
    assert not (tmp_path / "out").exists()
