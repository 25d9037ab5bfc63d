"""What fine-tuned models are given: texts of one length wherever an export is used, and parts that fit the memory."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import trim_begin
from pipeline.data.batch import ImageTextBatch
from pipeline.data.loader import LoaderConfig
from pipeline.data.shards import ShardFolder
from pipeline.evaluation.exported import Evaluation, evaluate_export
from pipeline.exports import load_classification_model
from pipeline.process import Process
from pipeline.tasks.classes import TaskName
from pipeline.tasks.classification import ClassificationModel
from pipeline.train import LoopConfig
from pipeline.trim_config import TrimConfig
from pipeline.trimmed_model import TrimmedModel
from pipeline.worker import run_job
from tests.pipeline.test_train import data, job_of, pretrained  # noqa: F401
from tests.pipeline.test_trim_stages import picture

SHORT = 6  # tokens in training; the run's loader has 24


@pytest.fixture(scope="module")
def full(data: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:  # noqa: F811
    """A full model's export, trained on short texts, and what its stage counted."""
    folder = tmp_path_factory.mktemp("full") / "trim-1"
    run = {"trim.max_tokens": SHORT, "trim.validation": {"every_steps": 3, "split": "test"}}
    job = job_of(data, folder, "trim", target=1.0, backbone=str(pretrained / "export"), run=run)
    return folder / "export", run_job(job, Process())


@pytest.mark.timeout(200)
def test_validation_both_evaluations_and_predict_cut_texts_alike(
    data: Path,  # noqa: F811
    full: tuple[Path, dict[str, Any]],
    tmp_path: Path,
) -> None:
    export, counts = full
    rows = run_job(job_of(data, tmp_path / "e", "evaluate", pretrained=None, trimmed={"t": str(export)}), Process())
    (row,) = (row for row in rows["rows"] if row["metric"] == "accuracy")
    alone = evaluate_export(Evaluation(model=export, task="statement", split=str(data / "test")), Process())
    scores = {score["metric"]: score["value"] for score in alone["scores"]}
    assert scores["accuracy"] == row["value"] == counts["best"]["value"]
    assert alone["gmacs"]["mean"] == pytest.approx(row["gmacs"])
    model, shards = TrimmedModel.from_pretrained(export), ShardFolder(data / "test")
    texts = [said["text"] for each in range(len(shards)) for said in shards.read(each).fields["statements"]]
    assert max(int(mask.sum()) for mask in model.tokenizer.encode(texts, 24)[1]) > SHORT
    found = model.predict([picture()], texts)
    assert sum(said.gmacs for said in found) / len(found) == pytest.approx(row["gmacs"])


@pytest.mark.timeout(200)
def test_a_target_is_settled_on_texts_as_long_as_the_export_reads(
    data: Path,  # noqa: F811
    pretrained: Path,  # noqa: F811
    full: tuple[Path, dict[str, Any]],
    tmp_path: Path,
) -> None:
    def spent(export: Path) -> float:
        every = Evaluation(model=export, task="statement", split=str(data / "train"))
        return float(evaluate_export(every, Process())["gmacs"]["mean"])

    amount = float(f"{spent(full[0]) / 1.3:.6g}")
    # What is drawn is solved before training and only measured after it: a quick method, on the examples of all.
    run: dict[str, Any] = {"trim.method": "random", "trim.max_tokens": SHORT}
    run["trim.loop"] = {"samples": 8, "global_batch": 8}
    given = {"target": f"{amount} GFLOPs", "backbone": str(pretrained / "export"), "run": run}
    settled = run_job(job_of(data, tmp_path / "trim", "trim", **given), Process())["calibration"]
    assert settled["unit"] == "GMACs" and settled["wanted"] == amount
    assert settled["reached"] == pytest.approx(spent(tmp_path / "trim" / "export"), rel=0.01)
    assert settled["reached"] == pytest.approx(amount, rel=0.03)


@pytest.mark.parametrize(
    ("task", "own", "exported"),
    [("statement", None, 24), ("vqa", SHORT, 24), ("vqa", 30, 30), ("captioning", SHORT, SHORT)],
)
def test_an_export_takes_no_shorter_texts_than_the_run(task: TaskName, own: int | None, exported: int) -> None:
    loop = LoopConfig(samples=8, global_batch=8)
    config = TrimConfig(task=task, loop=loop, max_tokens=own, image_size=64)
    read = config.exported_loader(LoaderConfig(max_tokens=24))
    assert read.max_tokens == exported
    assert replace(read, max_tokens=24) == replace(config.loader(LoaderConfig(max_tokens=24)), max_tokens=24)


@pytest.mark.timeout(200)
def test_a_target_is_settled_on_all_splits_by_their_weights(
    data: Path,  # noqa: F811
    pretrained: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was settled on the first split alone, whatever the others cost."""
    drawn: list[dict[str, int]] = []
    real = ImageTextBatch.joined

    def seen(parts: Sequence[ImageTextBatch]) -> ImageTextBatch:
        whole = real(parts)
        drawn.append({split: sum(split in key for key in whole.keys) for split in ("train", "test")})
        assert len(whole.texts) == len(whole.told) == len(whole.pixels) == len(whole.token_ids) == len(whole)
        return whole

    monkeypatch.setattr(ImageTextBatch, "joined", staticmethod(seen))
    run: dict[str, Any] = {"trim.splits": {"train": 3, "test": 1}, "trim.method": "random"}
    run |= {"trim.loop": {"samples": 8, "global_batch": 8}, "trim.smarttrim": {"calibrate": 32}}
    job = job_of(data, tmp_path / "trim", "trim", target=1.3, backbone=str(pretrained / "export"), run=run)
    run_job(job, Process())
    assert drawn[-1] == {"train": 24, "test": 8}, drawn


@pytest.mark.timeout(200)
def test_heads_are_ordered_on_no_more_instances_at_once_than_are_trained(
    data: Path,  # noqa: F811
    pretrained: Path,  # noqa: F811
    full: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []
    real = trim_begin.head_importance

    def seen(model: ClassificationModel, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Mapping[str, Tensor]:
        parts = list(batches)
        sizes.extend(len(ids) for _, ids, _ in parts)
        return real(model, parts)

    monkeypatch.setattr(trim_begin, "head_importance", seen)
    orders = []
    for micro, most in ((None, 8), (2, 2)):
        run: dict[str, Any] = {"trim.method": "grad_all", "trim.heads": {"instances": 20}}
        run |= {"trim.loop": {"samples": 8, "global_batch": 8}, "trim.smarttrim": {"calibrate": 0}}
        run["engine.micro_batch"] = micro
        given = {"target": 1.3, "backbone": str(pretrained / "export"), "teacher": str(full[0]), "run": run}
        run_job(job_of(data, tmp_path / str(micro), "trim", **given), Process())
        assert (max(sizes), sum(sizes)) == (most, 20)
        sizes.clear()
        trimmers = load_classification_model(tmp_path / str(micro) / "export")[0].trimmers
        assert trimmers is not None
        orders.append({name: value for name, value in trimmers.state_dict().items() if name.endswith("rank_H")})
    assert orders[0] and all(torch.equal(orders[0][name], orders[1][name]) for name in orders[0])
