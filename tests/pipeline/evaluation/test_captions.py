"""Captioners of an export: made once, what each domain costs; what is refused before a model is loaded."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from data_prep.errors import UserError
from data_prep.files import read_json
from data_prep.job import Layout
from data_prep.records import Record
from data_prep.writer import write_split
from pipeline.captioner import Captioner
from pipeline.data.loader import StepLoader
from pipeline.evaluation.captions import ToldSplit, _scored
from pipeline.evaluation.classes import Costs, rows_of
from pipeline.evaluation.exported import TASKS, Evaluation, Job, evaluate_export
from pipeline.evaluation.opened import open_export
from pipeline.evaluation.unscored import UNSCORED
from pipeline.measure.latency import Instance
from pipeline.metrics.caption_tally import CaptionTally
from pipeline.metrics.captions import missing_for_captions
from pipeline.process import Process
from pipeline.stage import Stage
from tests.pipeline.data.samples import Listed, png
from tests.pipeline.distributed import run_ranks
from tests.pipeline.evaluation.exports import caption_export, split
from tests.pipeline.evaluation.test_retrieval import on_rank


def test_a_timed_caption_reads_no_file(tmp_path: Path) -> None:
    folder = caption_export(tmp_path / "export")
    what, task = Evaluation(model=folder, task="captioning", split=str(tmp_path)), TASKS["captioning"]
    model, source = open_export(folder, "captioning", what.split)
    job = Job(evaluation=what, model=model, source=source, process=Process())
    vision = Captioner.from_pretrained(folder).transform
    pixels, none_1L = torch.zeros(1, 3, vision.height, vision.width), torch.zeros(1, 1, dtype=torch.long)
    instance = Instance(pixels, none_1L, none_1L)
    first = task.instance(job, instance)
    shutil.rmtree(folder)
    assert torch.equal(task.instance(job, instance).ids_BM, first.ids_BM)  # type: ignore[attr-defined]


def with_java_at_rank_1_alone(process: Process, asked: Evaluation) -> tuple[str, list[float]]:
    if process.rank == 0:
        os.environ["PATH"] = ""
    found = on_rank(process, asked)
    return found["more"]["unscored"], found["scores"]


@pytest.mark.skipif(missing_for_captions() is not None, reason=str(missing_for_captions()))
def test_one_rank_says_for_all_whether_captions_are_scored(tmp_path: Path) -> None:
    folder, data = caption_export(tmp_path / "export"), split(tmp_path / "test", 3)
    asked = Evaluation(model=folder, task="captioning", split=str(data), predictions=tmp_path / "x.json")
    one, other = run_ranks(with_java_at_rank_1_alone, 2, asked)
    assert one == other and "need Java" in one[0] and not one[1]


def test_answers_that_are_not_there_are_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--answers .*gone\.json: no such file; give"):
        Evaluation(model=tmp_path, task="vqa_generative", split="", answers=tmp_path / "gone.json")


def test_pictures_without_captions_are_refused_before_they_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, data = caption_export(tmp_path / "export"), split(tmp_path / "test", 2, captions=[0])
    monkeypatch.setattr(StepLoader, "__iter__", lambda loader: pytest.fail("the split is told of for nothing"))
    with pytest.raises(UserError, match=r"none of its pictures has a caption; .* --predictions FILE"):
        on_rank(Process(), Evaluation(model=folder, task="captioning", split=str(data)))


@pytest.mark.parametrize(
    ("task", "file", "said"),
    [
        ("retrieval", "x.json", "there is no server for retrieval"),
        ("captioning", "x.jsonl", r"x\.jsonl must end in \.json, as captioning's server takes it"),
        ("snli_ve", "x.json", r"must end in \.jsonl"),
        ("captioning", "folder.json", r"folder\.json is a folder; give a file"),
        ("captioning", "file.txt/x.json", r"file\.txt is no folder that you may write to"),
        ("captioning", "new/deeper/x.json", None),
    ],
)
def test_a_result_file_that_cannot_be_written_is_refused_before_a_model_is_loaded(
    task: str, file: str, said: str | None, tmp_path: Path
) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file.txt").touch()

    def ask() -> Evaluation:
        return Evaluation(model=tmp_path / "gone", task=task, split="", predictions=tmp_path / file)

    if said is None:
        assert ask().predictions == tmp_path / file and not (tmp_path / "new").exists()
        return
    with pytest.raises(UserError, match=said):
        ask()


def test_a_picture_called_by_a_path_is_told_of_under_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server knows numbers; a number of another data set's is none of a picture that has its own."""
    monkeypatch.setenv("PATH", "")  # nothing is to be scored
    records = [
        Record(key=f"s{i}", source="albef", id=name, images={"": png(i)}, captions=["one"], fields=fields)
        for i, (name, fields) in enumerate(
            [("val2014/COCO_val2014_000000000042.jpg", {"coco_id": 42}), ("val/00.jpg", {"img_id": 3}),
             ("own/a.jpg", {"image_id": "x_1"}), ("107", {"coco_id": 8})]
        )
    ]  # fmt: skip
    write_split(Listed(records), tmp_path / "val", name="val", fingerprint="test", layout=Layout(), workers=1)
    asked = Evaluation(
        model=caption_export(tmp_path / "export"), task="captioning", split=str(tmp_path / "val"),
        predictions=tmp_path / "said.json",
    )  # fmt: skip
    evaluate_export(asked, Process())
    assert [one["image_id"] for one in read_json(tmp_path / "said.json")] == [42, 3, "own/a.jpg", 107]


def test_more_beams_than_words_are_refused(tmp_path: Path) -> None:
    folder = caption_export(tmp_path)
    with pytest.raises(UserError, match=r"beams=500 are too many for a model that knows [0-9]+ words"):
        Captioner.from_pretrained(folder, changes={"beams": 500})
    most = Captioner.from_pretrained(folder).model.backbone.config.text.vocab_size // 2
    told = Captioner.from_pretrained(folder, changes={"beams": most}).caption([png(0)])
    assert len(told) == 1


def test_each_domain_has_its_own_costs() -> None:
    tally = CaptionTally()
    tally.found = {"a": "red", "b": "blue", "c": "two", "d": "one"}
    tally.domains = {"a": "in-domain", "b": "out-domain", "c": "in-domain"}
    told = ToldSplit(tally, Costs([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0], [9.0] * 4), "d0", 4, 0)
    assert told.costs_of("in-domain") == Costs([1.0, 3.0], [5.0, 7.0], [9.0, 9.0])
    assert told.costs_of("out-domain") == Costs([2.0], [6.0], [9.0])


def test_why_there_are_no_scores_is_left_for_who_reads_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    tally, stage = CaptionTally(), Stage(tmp_path, Process())
    tally.found, tally.said = {"a": "red"}, {"a": ["a red one"]}
    told = ToldSplit(tally, Costs([1.0], [1.0], [1.0]), "d0", 1, 0)
    assert _scored(told, stage, "trim-captioning-2.0x", "coco/val") == {}
    assert rows_of({"stage": "trim-vqa-2.0x", "split": "vqa/test"}, [], stage) == []
    captions, vqa = (read_json(path) for path in sorted((tmp_path / UNSCORED).iterdir()))
    assert (captions["model"], captions["split"]) == ("trim-captioning-2.0x", "coco/val")
    assert captions["why"] == (
        f"{missing_for_captions()} on the machine that evaluates; then remove stages/evaluate-trim-captioning-2.0x and "
        "run the same command again"
    )
    assert (vqa["model"], vqa["split"]) == ("trim-vqa-2.0x", "vqa/test") and "nobody says what is right" in vqa["why"]
