"""Captioners of an export: made once; what is refused before a model is loaded."""

import shutil
from pathlib import Path

import pytest
import torch

from data_prep.errors import UserError
from pipeline.captioner import Captioner
from pipeline.evaluation.exported import TASKS, Evaluation, Job, open_export
from pipeline.measure.latency import Instance
from pipeline.process import Process
from tests.pipeline.evaluation.exports import caption_export


def test_a_timed_caption_reads_no_file(tmp_path: Path) -> None:
    folder = caption_export(tmp_path / "export")
    what, task = Evaluation(model=folder, task="captioning", split=str(tmp_path)), TASKS["captioning"]
    model, source = open_export(what, task)
    job = Job(evaluation=what, model=model, source=source, process=Process())
    vision = Captioner.from_pretrained(folder).transform
    pixels, none_1L = torch.zeros(1, 3, vision.height, vision.width), torch.zeros(1, 1, dtype=torch.long)
    instance = Instance(pixels, none_1L, none_1L)
    first = task.instance(job, instance)
    shutil.rmtree(folder)
    assert torch.equal(task.instance(job, instance).ids_BM, first.ids_BM)  # type: ignore[attr-defined]


def test_answers_that_are_not_there_are_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--answers .*gone.json: no such file; give"):
        Evaluation(model=tmp_path, task="vqa_generative", split="", answers=tmp_path / "gone.json")
