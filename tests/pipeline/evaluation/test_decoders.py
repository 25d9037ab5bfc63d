"""Captions and answers by a decoder: dealt to ranks in batches they stay the same; NaN is an error."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.errors import UserError
from data_prep.shapes_published import write_published
from data_prep.sources import SourceConfig, prepare
from pipeline.captioner import Captioner
from pipeline.evaluation.captions import PICTURES, told_on, words_on
from pipeline.evaluation.exported import Evaluation, evaluate_export
from pipeline.evaluation.opened import open_export
from pipeline.process import Process
from tests.pipeline.distributed import run_ranks
from tests.pipeline.evaluation.exports import answering_export, caption_export, split
from tests.pipeline.evaluation.test_retrieval import on_rank, spoil

NAMES = ("yes", "no", "0", "1", "2", "red", "dark red", "a photo of 3", "blue")
Found = Callable[[Process, Evaluation], dict[str, Any]]


def in_batches(process: Process, found: Found, asked: Evaluation) -> list[dict[str, Any]]:
    """What a rank gets in batches of one and in one batch."""
    return [found(process, replace(asked, batch_size=size)) for size in (1, 64)]


def dealt(found: Found, asked: Evaluation) -> Iterator[dict[str, Any]]:
    """What all ranks get, of one, two and three processes."""
    yield from in_batches(Process(), found, asked)
    for world_size in (2, 3):
        for results in run_ranks(in_batches, world_size, found, asked, timeout=150.0):
            yield from results


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A drawn split of VQA."""
    root = tmp_path_factory.mktemp("vqa")
    write_published("vqa", root / "raw", {"train": 2, "val": 6}, 32, 0)
    prepare(SourceConfig(name="vqa", root=str(root / "raw"), shard_samples=2), root / "data", workers=1)
    return str(root / "data/val")


@pytest.mark.timeout(300)
def test_processes_and_batches_change_no_answer(questions: str, tmp_path: Path) -> None:
    folder = answering_export(tmp_path / "export", NAMES, candidates=5)
    asked = Evaluation(model=folder, task="vqa_generative", split=questions)
    wanted = on_rank(Process(), asked)
    assert wanted["scores"] and len(wanted["gmacs"]) == wanted["samples"] > 6 and np.std(wanted["gmacs"]) > 0
    for result in dealt(on_rank, asked):
        assert result["scores"] == wanted["scores"]
        # An answer's mean length is no whole number, so that sums of these counts are rounded.
        np.testing.assert_allclose(result["gmacs"], wanted["gmacs"], rtol=1e-6)
        assert (result["outcomes"], result["digest"]) == (wanted["outcomes"], wanted["digest"])


def told_by(process: Process, asked: Evaluation) -> dict[str, Any]:
    """What every rank gets of a captioner; its captions' scores want Java, that of its words does not."""
    model, source = open_export(asked.model, "captioning", asked.split)
    captioner = Captioner.from_pretrained(asked.model)
    told = told_on(captioner, source, source.batches(PICTURES, asked.batch_size, process), process)
    behind = replace(source, tokenizer=source.tokenizer.behind(captioner.config.prompt))
    loader = behind.batches("captions", asked.batch_size, process)
    words = words_on(model.eval(), behind, loader, process)  # type: ignore[arg-type]
    return {"captions": told.tally.found, "words": (words.right, words.words), "samples": told.samples,
            "digest": told.digest, "costs": asdict(told.costs), "share": words.costs.share}  # fmt: skip


@pytest.mark.timeout(300)
def test_processes_and_batches_change_no_caption(tmp_path: Path) -> None:
    folder, data = caption_export(tmp_path / "export"), split(tmp_path / "test", 11)
    asked = Evaluation(model=folder, task="captioning", split=str(data))
    wanted = told_by(Process(), asked)
    assert len(wanted["captions"]) == wanted["samples"] == 11 and len(set(wanted["captions"].values())) > 1
    assert wanted["words"][1] > 11 and np.std(wanted["costs"]["macs"]) > 0
    for result in dealt(told_by, asked):
        assert result == wanted


@pytest.mark.parametrize(
    ("task", "said"), [("captioning", "scores of words"), ("vqa_generative", "scores of questions")]
)
def test_nan_is_an_error(task: str, said: str, questions: str, tmp_path: Path) -> None:
    folder, data = tmp_path / "export", questions
    if task == "captioning":
        caption_export(folder)
        data = str(split(tmp_path / "test", 2))
    else:
        answering_export(folder, NAMES, candidates=5)
    spoil(folder, "backbone.text_decoder.cls.predictions.bias")
    asked = Evaluation(model=folder, task=task, split=data, predictions=tmp_path / "said.json")
    with pytest.raises(UserError, match=rf"{said} are not finite numbers"):
        evaluate_export(asked, Process())
    assert not (tmp_path / "said.json").exists()
