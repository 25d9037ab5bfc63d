"""Retrieval through the worker's entry and the command line: trained, exported, validated, evaluated, predicted."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.errors import UserError
from data_prep.shapes_published import write_published
from data_prep.sources import SourceConfig, prepare
from launch.cli import main
from pipeline.data.text import Tokenizer, TokenizerConfig
from pipeline.evaluation.exported import Evaluation
from pipeline.exports import load_classification_model
from pipeline.measure.flops import joining_macs, linear_macs
from pipeline.measure.instances import INSTANCES
from pipeline.measure.model_flops import steps_macs
from pipeline.measure.outcomes import outcomes_file, read_outcomes
from pipeline.metrics.ranks import RECALLS
from pipeline.models.config import TEMPERATURE_LIMITS
from pipeline.process import Process
from pipeline.progress import read_metrics
from pipeline.tasks.retrieval_model import RetrievalModel
from pipeline.trimmed_model import TrimmedModel
from tests.pipeline.distributed import run_ranks
from tests.pipeline.evaluation.test_retrieval import on_rank
from tests.pipeline.test_task_stages import evaluated, trained
from tests.pipeline.test_trim_stages import picture

RUN = {"trim.splits": {"train": 1.0}, "trim.lr_scales": {"temp": 0.05}}  # the recipe's, for whichever backbone
ASKED = {"evaluate.retrieval_captions": "all", "evaluate.rerank": 4}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn pictures with five captions each, and a tokenizer."""
    root = tmp_path_factory.mktemp("retrieval")
    write_published("coco", root / "raw", {"train": 24, "val": 7}, 32, 0)
    prepare(SourceConfig(name="coco", root=str(root / "raw"), shard_samples=10), root / "data", workers=1)
    words = "a picture of two small red stars on the left and large blue circle is there one green square triangle"
    Tokenizer.train([words], TokenizerConfig(vocab_size=128)).save(root / "tokenizer")
    return root


def trained_on(root: Path, folder: Path, backbone: str = "albef", **more: Any) -> dict[str, Any]:
    run = RUN | more.pop("run", {})
    return trained(("retrieval", root), backbone, folder, run=run, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["albef", "meter", pytest.param("blip", marks=pytest.mark.slow)])
def stages(root: Path, request: pytest.FixtureRequest) -> dict[str, Path]:
    """Folders of a full and of a trimmed fine-tuning."""
    found = {name: root / f"{request.param}-{name}" for name in ("full", "trim")}
    trained_on(root, found["full"], request.param, target=1.0)
    trained_on(root, found["trim"], request.param, target=1.4)
    return found


@pytest.mark.timeout(300)
def test_both_ways_are_evaluated_with_all_captions_at_what_they_cost(
    root: Path, stages: dict[str, Path], tmp_path: Path
) -> None:
    told = read_metrics(stages["full"] / "metrics.jsonl")[-1].keys()
    contrasts = load_classification_model(stages["full"] / "export")[0].backbone.has_contrast
    assert {"loss/task", "accuracy"} <= told and ("temperature" in told) == ("lr/temp" in told) == contrasts
    lines = read_metrics(stages["trim"] / "metrics.jsonl")
    assert {"loss/task", "loss/full", "loss/divergence", "loss/cost", "kept/text", "kept/mca"} <= lines[-1].keys()
    exports = {name: folder / "export" for name, folder in stages.items()}
    rows = evaluated(("retrieval", root), tmp_path, exports, **ASKED)
    assert {row["task"] for row in rows} == {"retrieval"} and {row["samples"] for row in rows} == {7}
    by_stage = {name: {row["metric"]: row for row in rows if row["stage"] == name} for name in exports}
    assert all(tuple(found) == RECALLS for found in by_stage.values())
    for found in by_stage.values():
        six = [found[f"{way} R@{k}"]["value"] for way in ("TR", "IR") for k in (1, 5, 10)]
        assert found["mean_recall"]["value"] == pytest.approx(sum(six) / 6)
        assert found["TR R@10"]["low"] <= found["TR R@10"]["value"] <= found["TR R@10"]["high"]
    full, trim = by_stage["full"]["R@10"], by_stage["trim"]["R@10"]
    assert full["gmacs"] == full["full_gmacs"] == trim["full_gmacs"] > trim["gmacs"]
    assert trim["reached"] == pytest.approx(trim["full_gmacs"] / trim["gmacs"]) and trim["wanted"] == 1.4
    hits = read_outcomes(outcomes_file(tmp_path, "trim", "val"), "R@10")
    assert [len(each.names) for each in hits] == [7, 35]
    seen = json.loads((tmp_path / INSTANCES / "trim-val.json").read_text())
    assert len(seen["gmacs"]) == 35 and {place["group"] for place in seen["kept"]} == {"vision", "text", "msa", "mca"}
    one = evaluated(("retrieval", root), tmp_path / "one", exports, **ASKED | {"evaluate.retrieval_captions": "first"})
    assert one[0]["full_gmacs"] != rows[0]["full_gmacs"]


def test_processes_and_batches_change_no_score(root: Path, stages: dict[str, Path]) -> None:
    asked = Evaluation(model=stages["trim"] / "export", task="retrieval", split=str(root / "data" / "val"), rerank=4)
    wanted = on_rank(Process(), asked)
    assert wanted["more"] == {"images": 7, "captions": 35, "queries": 7} and len(wanted["gmacs"]) == 35
    for found in (
        on_rank(Process(), replace(asked, batch_size=1)),
        *run_ranks(on_rank, 2, replace(asked, batch_size=3)),
    ):
        assert found["scores"] == wanted["scores"]
        assert found["gmacs"] == pytest.approx(wanted["gmacs"])


def test_an_export_is_evaluated_and_predicts_from_the_command_line(
    root: Path, stages: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    export = str(stages["trim"] / "export")
    words = ["--data", str(root / "data"), "--split", "val", "--device", "cpu", "--json"]
    assert main(["evaluate", export, "--task", "retrieval", "--rerank", "4", *words]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["latency"]["ms"] > 0 and {score["metric"] for score in told["scores"]} >= set(RECALLS)
    assert main(["evaluate", export, "--task", "zero_shot", "--label-field", "id", *words]) == 2
    assert "--task retrieval can be done with it" in capsys.readouterr().err
    model = TrimmedModel.from_pretrained(export)
    both = model.predict([picture()], ["two red stars", "a blue circle"])
    assert {said.answer for said in both} <= {"true", "false"} and both[0].gmacs < both[0].full_gmacs
    assert both[0].probability != both[1].probability


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backbone", ["albef", "meter"])
def test_the_best_by_mean_recall_is_exported(root: Path, backbone: str, tmp_path: Path) -> None:
    validation = {"split": "val", "every_steps": 3, "metric": "mean_recall", "batch_size": 4}
    best = trained_on(root, tmp_path / "trim", backbone, target=1.0, run={"trim.validation": validation})["best"]
    lines = {line["step"]: line for line in read_metrics(tmp_path / "trim" / "metrics.jsonl")}
    values = {step: line["validation/mean_recall"] for step, line in lines.items() if "validation/mean_recall" in line}
    assert sorted(values) == [3, 6] and best["value"] == max(values.values())
    rows = evaluated(("retrieval", root), tmp_path / "e", {"trim": tmp_path / "trim/export"},
                     **ASKED | {"evaluate.rerank": 128})  # fmt: skip
    assert next(row["value"] for row in rows if row["metric"] == "mean_recall") == pytest.approx(best["value"])


def test_a_picture_is_seen_once_an_epoch(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    forward = RetrievalModel.forward

    def note(self: RetrievalModel, *given: Any) -> Any:
        seen.append(given[-1].candidates.same_BN.sum(1).tolist())
        return forward(self, *given)

    monkeypatch.setattr(RetrievalModel, "forward", note)
    trained_on(root, tmp_path / "trim", target=1.0)
    assert seen and all(count == 1 for batch in seen for count in batch)


def test_the_temperature_stays_between_its_limits(root: Path, tmp_path: Path) -> None:
    trained_on(root, tmp_path / "trim", target=1.0, run={"trim.lr_scales": {"temp": 1e4}})
    told = [line["temperature"] for line in read_metrics(tmp_path / "trim" / "metrics.jsonl")]
    low, high = TEMPERATURE_LIMITS
    assert all(low <= each <= high for each in told) and (min(told[1:]) < 1.01 * low or max(told) > 0.99 * high)


def test_its_similarity_is_looked_at_untrimmed(
    root: Path, stages: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--split", str(root / "data" / "val"), "--out", str(root / "looked")]
    assert main(["analyse", "similarity", str(stages["full"] / "export"), *words]) == 0
    assert "Unpruned, untrimmed" in capsys.readouterr().out
    assert (root / "looked/similarity-data-val.csv").is_file()


@pytest.mark.slow
def test_a_trimmed_model_may_begin_as_the_fine_tuned_one(root: Path, tmp_path: Path) -> None:
    trained_on(root, tmp_path / "full", target=1.0)
    given = {"target": 1.3, "teacher": str(tmp_path / "full" / "export"), "run": {"trim.init": "finetuned"}}
    trained_on(root, tmp_path / "trim", **given)
    model, described = load_classification_model(tmp_path / "trim" / "export")
    assert isinstance(model, RetrievalModel) and described["kind"] == "retrieval"
    assert model.backbone.visual_encoder.guide == "image"


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ({"trim.method": "trips"}, "trim.task=retrieval goes with trim.method smarttrim or local, not trips"),
        ({"trim.targets": ["5 ms"]}, "5 ms is not timed for trim.task=retrieval"),
        ({"engine.micro_batch": 1}, "micro_batch=1 must be at least 2: a part of trim needs as many"),
        ({"trim.keep_pruning": True}, "keep_pruning=true does not go with trim.task=retrieval"),
        (
            {"trim.validation": {"every_steps": 2, "split": "val", "metric": "accuracy"}},
            "metric=accuracy is no score of trim.task=retrieval: TR R@1, .* R@10, mean_recall",
        ),
    ],
)
def test_what_retrieval_cannot_have_is_refused(root: Path, run: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        trained_on(root, tmp_path / "trim", target=1.3, run=run)


def test_clip_is_refused_before_it_trains(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trim\.task=retrieval wants matching, but clip has none"):
        trained_on(root, tmp_path / "trim", "clip", target=1.0)
    assert not (tmp_path / "trim" / "metrics.jsonl").exists()


def test_meters_training_is_counted_with_the_false_texts_of_its_batch(root: Path, tmp_path: Path) -> None:
    """A batch of 4 has 3 of them, and pre-training's pruning is left out, for no text guides a picture."""
    counted = {}
    for false in (1, 15):
        run = {"trim.retrieval": {"false_texts": false}, "trim.loop": {"samples": 4, "global_batch": 4}}
        found = trained_on(root, tmp_path / str(false), "meter", target=1.0, run=run)
        counted[false] = found["training"]["gmacs"] / found["training"]["samples"]
    model, described = load_classification_model(tmp_path / "15" / "export")
    assert described["pruning"] is None and model.pruning is None
    config = model.backbone.config
    tokens = {"text": described["loader"]["max_tokens"], "image": 1 + config.vision.patches}
    lengths = (torch.tensor(float(tokens[name])) for name in ("text", "image"))
    pair = steps_macs(model.backbone.fusion_steps, tokens) + float(joining_macs(model.backbone, *lengths))
    pair += linear_macs(model.backbone.itm_head)
    assert (counted[15] - counted[1]) * 1e9 == pytest.approx(3 * 2 * pair, rel=1e-4)
