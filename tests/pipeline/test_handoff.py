"""A trim stage refuses a checkpoint of another run's making, and says in one line what differs."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError
from data_prep.files import read_json, write_json
from pipeline.data.text import Tokenizer, TokenizerConfig
from pipeline.process import Process
from pipeline.worker import run_job
from tests.pipeline.test_train import data, job_of, pretrained

__all__ = ["data", "pretrained"]  # fixtures
BIGGER = {"loader.height": 48, "loader.width": 48, "model.vision.height": 48, "model.vision.width_px": 48}
METER = {"model.backbone": "meter", "model.fusion": {"width": 32, "heads": 2}}
BLIP = {"model.backbone": "blip", "model.text.fusion_layers": 0}
PICTURES = "it was trained for 32 x 32 pixels, the loader gives 48 x 48"


def refused(data: Path, folder: Path, backbone: Path, run: dict[str, Any], **more: Any) -> str:
    job = job_of(data, folder, "trim", target=1.0, backbone=str(backbone), run=run, **more)
    with pytest.raises(UserError) as caught:
        run_job(job, Process())
    assert not (folder / "metrics.jsonl").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (BIGGER, (PICTURES, "its vision.height is 32, this run's model.vision.height is 48")),
        (METER, ("its backbone is albef, this run's is meter",)),
        ({**METER, **BIGGER}, ("its backbone is albef", PICTURES)),
        ({"model.vision.depth": 6}, ("its vision.depth is 4, this run's model.vision.depth is 6",)),
    ],
)
def test_what_differs_is_said(
    data: Path, pretrained: Path, tmp_path: Path, run: dict[str, Any], said: tuple[str, ...]
) -> None:
    line = refused(data, tmp_path / "t", pretrained / "export", run)
    assert line.startswith(f"{pretrained / 'export'} does not fit this run: ")
    assert all(words in line for words in said), line


def test_another_tokenizer_of_as_many_words_is_told_from_the_one_it_was_trained_with(
    data: Path, pretrained: Path, tmp_path: Path
) -> None:
    shutil.copytree(data / "tokenizer", tmp_path / "same")
    ours = Tokenizer.load(data / "tokenizer")
    texts = ["".join(chr(97 + (n * k) % 26) for k in range(1, 8)) for n in range(1, 200)]
    other = Tokenizer.train(texts, TokenizerConfig(vocab_size=ours.vocab_size))
    other.save(tmp_path / "other")
    assert other.vocab_size <= ours.vocab_size, "so that each of its words has a row"
    line = refused(data, tmp_path / "t", pretrained / "export", {}, tokenizer=str(tmp_path / "other"))
    assert f"another tokenizer ({ours.vocab_size} words, this run's has {other.vocab_size})" in line
    same = {"tokenizer": str(tmp_path / "same"), "run": {"trim.loop.samples": 8}}
    job = job_of(data, tmp_path / "u", "trim", target=1.0, backbone=str(pretrained / "export"), **same)
    assert run_job(job, Process())["steps"] == 1


def test_weights_that_do_not_say_their_tokenizer_are_refused_only_where_words_are_missing(
    data: Path, pretrained: Path, tmp_path: Path
) -> None:
    export = tmp_path / "imported"
    shutil.copytree(pretrained / "export", export)
    described = read_json(export / "config.json")
    del described["tokenizer"]
    write_json(export / "config.json", described)
    job = job_of(data, tmp_path / "t", "trim", target=1.0, backbone=str(export), run={"trim.loop.samples": 8})
    assert run_job(job, Process())["steps"] == 1
    many = Tokenizer.train((f"{n} word{n}" for n in range(1000)), TokenizerConfig(vocab_size=300))
    many.save(tmp_path / "many")
    line = refused(data, tmp_path / "u", export, {}, tokenizer=str(tmp_path / "many"))
    assert "words, this run's has" in line


@pytest.mark.parametrize("sizes", [METER, BLIP], ids=["meter", "blip"])
def test_the_other_backbones_are_taken_where_they_fit(data: Path, tmp_path: Path, sizes: dict[str, Any]) -> None:
    run = {**sizes, "pretrain.loop.samples": 8, "trim.loop.samples": 8, "pretrain.pruning": {"method": "none"}}
    run_job(job_of(data, tmp_path / "p", "pretrain", run=run), Process())
    job = job_of(data, tmp_path / "t", "trim", target=1.0, backbone=str(tmp_path / "p" / "export"), run=run)
    assert run_job(job, Process())["steps"] == 1
