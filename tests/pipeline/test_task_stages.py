"""Classification tasks through the worker's entry: trained, exported, evaluated, scored from their result files."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.errors import UserError
from data_prep.shapes_published import write_published
from data_prep.sources import SourceConfig, prepare
from pipeline.checkpoint import export_weights, load_weights
from pipeline.data import questions
from pipeline.data.loader import LoaderConfig, StepLoader
from pipeline.data.shards import ShardFolder
from pipeline.data.text import Tokenizer, TokenizerConfig
from pipeline.evaluation.exported import Evaluation
from pipeline.exports import load_classification_model
from pipeline.measure.model_flops import FlopsConfig, count_macs
from pipeline.metrics.tasks import SCORED
from pipeline.models.build import build_model
from pipeline.models.config import BackboneName, ModelConfig
from pipeline.models.heads import TaskClassifier
from pipeline.process import Process
from pipeline.progress import read_metrics
from pipeline.setup import export_config, sized_model
from pipeline.tasks.classes import SNLI_VE, Classes, classes_of
from pipeline.tasks.classification import ClassificationModel, ClassificationTask, SmartTrimConfig
from pipeline.trimmed_model import TrimmedModel
from pipeline.trimming.cost import units_of
from pipeline.trimming.smarttrim import threshold
from pipeline.trimming.trimmers import TrimmerConfig
from pipeline.worker import parse, run_job
from tests.pipeline.distributed import run_ranks
from tests.pipeline.evaluation.test_retrieval import on_rank
from tests.pipeline.small import OTHER_BACKBONES, scale, small_batch, small_config, small_model
from tests.pipeline.test_train import job_of
from tests.pipeline.test_trim_stages import picture

FUSING: list[BackboneName] = ["albef", "blip", "meter"]
ANSWERS = classes_of("vqa", tuple("abcdefg"))
MIXED = TrimmerConfig(keep_bias=0.1, last_std=0.5)
SIZES = {
    "snli_ve": {"train": 24, "test": 12}, "vqa": {"train": 40, "val": 10}, "nlvr2": {"train": 12, "test1": 4},
}  # fmt: skip
EVALUATED = {"snli_ve": "test", "vqa": "val", "nlvr2": "test1", "retrieval": "val"}
GOLD = {
    "snli_ve": "snli_ve_test.jsonl",
    "vqa": "v2_mscoco_val2014_annotations.json",
    "nlvr2": "test1.json",
}
TEXT = {
    "snli_ve": "a red star is on the left",
    "vqa": "how many stars are there?",
    "nlvr2": "both pictures have a star",
}


@pytest.fixture(scope="module", params=list(SIZES))
def drawn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A task, and a folder with its published files, its shards and a tokenizer."""
    return drawn_of(str(request.param), tmp_path_factory.mktemp(request.param))


def drawn_of(task: str, root: Path) -> tuple[str, Path]:
    """See `drawn`."""
    write_published(task, root / "raw", SIZES[task], 32, 0)
    prepare(SourceConfig(name=task, root=str(root / "raw"), shard_samples=10), root / "data", workers=1)
    words = "is there a red star on the left half of picture how many shapes are what colour"
    Tokenizer.train([words, *TEXT.values()], TokenizerConfig(vocab_size=128)).save(root / "tokenizer")
    return task, root


def backbone_of(root: Path, name: BackboneName) -> tuple[Path, dict[str, Any]]:
    """An export of a backbone that has learned nothing, and the settings that it was made with."""
    run = {f"model.{key}": value for key, value in {"backbone": name, **OTHER_BACKBONES.get(name, {})}.items()}
    job = job_of(root / "data", root, "trim", run=run)
    loader, tokenizer = parse(LoaderConfig, job["run"]["loader"]), Tokenizer.load(root / "tokenizer")
    config = sized_model(parse(ModelConfig, job["run"]["model"]), tokenizer, loader)
    torch.manual_seed(0)
    described = export_config("backbone", config, loader, tokenizer=tokenizer.digest)
    export_weights(root / f"backbone-{name}", build_model(config).state_dict(), described, tokenizer)
    return root / f"backbone-{name}", run


def trained(drawn: tuple[str, Path], name: BackboneName, folder: Path, **more: Any) -> dict[str, Any]:
    task, root = drawn
    backbone, run = backbone_of(root, name)
    run |= {"trim.task": task, "trim.answers": {"at_least": 5}, **more.pop("run", {})}
    given = {"backbone": str(backbone), "tokenizer": str(root / "tokenizer"), "run": run, **more}
    return run_job(job_of(root / "data", folder, "trim", **given), Process())


def evaluated(drawn: tuple[str, Path], folder: Path, exports: Mapping[str, Path], **more: Any) -> list[dict[str, Any]]:
    task, root = drawn
    run = {"evaluate.statement_splits": [EVALUATED[task]], **more}
    trimmed = {name: str(path) for name, path in exports.items()}
    given = {"tokenizer": str(root / "tokenizer"), "pretrained": None, "trimmed": trimmed, "run": run}
    rows: list[dict[str, Any]] = run_job(job_of(root / "data", folder, "evaluate", **given), Process())["rows"]
    return rows


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", FUSING)
def test_a_task_trains_exports_and_is_scored_as_its_result_file_is(
    drawn: tuple[str, Path], name: BackboneName, tmp_path: Path
) -> None:
    task, root = drawn
    counts = trained(drawn, name, tmp_path / "trim", target=1.4)
    assert 1 / counts["calibration"]["after"] == pytest.approx(1.4, rel=0.15)
    lines = read_metrics(tmp_path / "trim" / "metrics.jsonl")
    assert {"loss/task", "loss/full", "loss/divergence", "loss/cost"} <= lines[-1].keys()
    rows = evaluated(drawn, tmp_path / "evaluate", {"trim": tmp_path / "trim/export"})
    file = next((tmp_path / "evaluate" / "predictions").iterdir())
    scores = SCORED[task](file, root / "raw" / GOLD[task], False)
    assert file.name.startswith(f"trim-{EVALUATED[task]}.")
    wanted = [{"metric": s.metric, "value": s.value, "low": s.low, "high": s.high} for s in scores]
    assert [{key: row[key] for key in wanted[0]} for row in rows] == wanted
    assert {row["task"] for row in rows} == {task} and rows[0]["metric"] == "accuracy"
    assert rows[0]["gmacs"] < rows[0]["full_gmacs"]
    small = evaluated(drawn, tmp_path / "by3", {"trim": tmp_path / "trim/export"}, **{"evaluate.batch_size": 3})
    assert [row["value"] for row in small] == [row["value"] for row in rows]
    shown = [picture(), picture()] if task == "nlvr2" else [picture()]
    said = TrimmedModel.from_pretrained(tmp_path / "trim/export").predict(shown, [TEXT[task]])[0]
    assert said.answer in load_classification_model(tmp_path / "trim/export")[0].classes.names
    assert 0 < said.probability <= 1 and said.gmacs < said.full_gmacs


def counted(process: Process, evaluation: Evaluation) -> tuple[dict[str, Any], int]:
    """What a rank gets of a split, and how often it read the whole of it to count questions."""
    questions._known.clear()
    read, reads = questions._read, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(questions, "_read", lambda folder: (reads.append(folder), read(folder))[1])
        return on_rank(process, evaluation), len(reads)


def test_processes_and_batches_change_no_score_and_one_process_counts_the_questions(
    drawn: tuple[str, Path], tmp_path: Path
) -> None:
    task, root = drawn
    trained(drawn, "albef", tmp_path / "trim", target=1.4)
    asked = Evaluation(model=tmp_path / "trim/export", task=task, split=str(root / "data" / EVALUATED[task]))
    wanted, once = counted(Process(), asked)
    assert once == (task == "vqa")
    for world_size, batch_size in ((2, 1), (3, 1), (2, 64), (3, 64)):
        found = run_ranks(counted, world_size, replace(asked, batch_size=batch_size))
        assert [reads for _, reads in found] == [once, *[0] * (world_size - 1)]
        for result, _ in found:
            assert result["scores"] == wanted["scores"] and result["samples"] == wanted["samples"]
            assert result["gmacs"] == pytest.approx(wanted["gmacs"])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("method", ["evit", "ftkd", "grad_all"])
def test_baselines_train_on_every_task(drawn: tuple[str, Path], method: str, tmp_path: Path) -> None:
    trained(drawn, "albef", tmp_path / "full", target=1.0)
    run = {"trim.method": method, "trim.heads": {"instances": 16}, "trim.smarttrim": {"calibrate": 0}}
    if (drawn[0], method) == ("nlvr2", "ftkd"):
        with pytest.raises(UserError, match=r"trim\.method=ftkd is not made for trim\.task=nlvr2"):
            trained(drawn, "albef", tmp_path / "trim", target=1.3, teacher=str(tmp_path / "full/export"), run=run)
        return
    trained(drawn, "albef", tmp_path / "trim", target=1.3, teacher=str(tmp_path / "full/export"), run=run)
    rows = evaluated(drawn, tmp_path / "e", {"full": tmp_path / "full/export", "trim": tmp_path / "trim/export"})
    assert {row["method"] for row in rows} == {"full", method}
    full, trim = (next(row for row in rows if row["stage"] == stage) for stage in ("full", "trim"))
    assert trim["gmacs"] < full["gmacs"]


@pytest.mark.parametrize("name", FUSING)
@pytest.mark.parametrize("classes", [SNLI_VE, ANSWERS], ids=["snli_ve", "vqa"])
def test_packed_and_masked_execution_agree(name: BackboneName, classes: Classes) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        model = ClassificationModel(small_model(name), MIXED, classes=classes).eval()
        batch = small_batch(6)
        inputs = scale(batch.pixels), batch.token_ids, batch.token_mask
        masked, packed = model.trimming(*inputs[1:], threshold), model.trimming(*inputs[1:])
        assert masked is not None and packed is not None
        with torch.no_grad():
            by_mask, by_packing = (model.classify(*inputs, [each]) for each in (masked, packed))
            full = model.classify(*inputs, [])
    finally:
        torch.set_default_dtype(torch.float32)
    assert by_mask.shape == (6, len(classes.names))
    torch.testing.assert_close(by_packing, by_mask)
    assert not torch.allclose(full, by_mask)
    units = units_of(model.backbone, batch.token_mask)
    costs = [model.macs(each.decisions, units) for each in (masked, packed)]
    torch.testing.assert_close(*costs, check_dtype=False)
    assert (costs[0] < model.full_macs(units)).all()


@pytest.mark.parametrize("answers", [3, 3129])
def test_costs_are_those_that_flops_counts(answers: int) -> None:
    config = small_config(backbone="meter")
    classes = classes_of("vqa", tuple(map(str, range(answers))))
    model = ClassificationModel(small_model("meter"), None, classes=classes)
    batch = small_batch(2)
    found_B = model.full_macs(units_of(model.backbone, batch.token_mask))
    for length, found in zip(batch.token_mask.sum(1).tolist(), found_B.tolist(), strict=True):
        counted = count_macs(config, FlopsConfig(task="vqa", text_length=length, answers=answers))
        assert found == counted["total"]


def test_training_moves_the_answers_of_soft_targets() -> None:
    """The trimmed forward learns which answers annotators gave, the full one beside it."""
    torch.manual_seed(0)
    model = ClassificationModel(small_model("albef"), TrimmerConfig(), classes=ANSWERS)
    batch = small_batch(8)
    batch.told.extend({"answers": ["abcdefg"[row % 3]] * 5} for row in range(8))
    typical = units_of(model.backbone, batch.token_mask)
    task = ClassificationTask(model, scale, 1.3, SmartTrimConfig(), typical)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    seen = []
    for _ in range(60):
        losses = task.losses(model, batch, 0.1)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        seen.append({name: float(loss.detach()) for name, loss in losses.named.items()})
    assert seen[-1]["task"] < 0.5 * seen[0]["task"] and seen[-1]["full"] < 0.5 * seen[0]["full"]
    assert float(losses.scalars["accuracy"]) > 3 / 8  # that of always the same answer


@pytest.fixture
def vqa_export(tmp_path: Path) -> Path:
    model = ClassificationModel(small_model("albef"), None, classes=ANSWERS)
    described = export_config("vqa", small_config(), LoaderConfig(), target=1.0, trimmers=None)
    export_weights(tmp_path / "export", model.state_dict(), described, None, {"answers.json": list(ANSWERS.names)})
    return tmp_path / "export"


def test_an_answer_list_that_does_not_fit_the_head_is_refused(vqa_export: Path) -> None:
    assert load_classification_model(vqa_export)[0].classes == ANSWERS
    for value, said in [
        (["a", "b", "c"], r"answers\.json lists 3 answers, but the head scores 7: it ends with 'c', 4 too early"),
        (list("abcdefghijkl"), "lists 12 .* scores 7: 5 too many, from 'h', 'i', 'j' and so on; the list is that of"),
        (list("abcdefgh"), "lists 8 .* scores 7: 1 too many, from 'h'; the list"),
        (list("abcdefa"), "has 1 answers twice, such as 'a'"),
        ({"a": 1}, "is no list of texts"),
        ([], "is an empty list"),
    ]:
        (vqa_export / "answers.json").write_text(json.dumps(value))
        with pytest.raises(UserError, match=said):
            load_classification_model(vqa_export)
    (vqa_export / "answers.json").unlink()
    with pytest.raises(UserError, match=r"has no answers\.json"):
        load_classification_model(vqa_export)


def test_a_teacher_of_another_answer_list_is_refused(drawn: tuple[str, Path], tmp_path: Path) -> None:
    task, _ = drawn
    others = {
        "vqa": {"trim.answers": {"at_least": 20}},
        "snli_ve": {"trim.task": "statement"},
        "nlvr2": {"trim.pair": "passes"},
    }
    trained(drawn, "albef", tmp_path / "full", target=1.0, run=others[task])
    given = {"target": 1.3, "teacher": str(tmp_path / "full/export"), "run": {"trim.init": "finetuned"}}
    said = rf"tells \d+ classes of \w+ apart, this stage \d+ of {task}"
    if task == "nlvr2":
        said = r"trim\.pair=both does not go with this albef, which has passes"
    with pytest.raises(UserError, match=said):
        trained(drawn, "albef", tmp_path / "trim", **given)


def test_data_of_another_task_is_refused_before_training(drawn: tuple[str, Path], tmp_path: Path) -> None:
    task, root = drawn
    shapes = tmp_path / "shapes"
    sizes = {"train": 40, "val": 0, "test": 0, "unseen": 0}
    prepare(SourceConfig(name="shapes", image_size=32, sizes=sizes), shapes, workers=1)
    root = tmp_path / "other"
    root.mkdir()
    shutil.copytree(drawn[1] / "tokenizer", root / "tokenizer")
    (root / "data").symlink_to(shapes)
    # Shapes have questions that one answer is known of, and statements that have no relation.
    said = {
        "vqa": r"none of its \d+ questions has `answers` of annotators",
        "snli_ve": "has a statement whose relation is none of entailment",
        "nlvr2": "has 1 picture where a left and a right one are wanted",
    }[task]
    with pytest.raises(UserError, match=said):
        trained((task, root), "albef", tmp_path / "trim", target=1.3)
    assert not (tmp_path / "trim" / "metrics.jsonl").exists()


def test_results_that_cannot_be_told_apart_are_refused(drawn: tuple[str, Path], tmp_path: Path) -> None:
    task, root = drawn
    if task == "nlvr2":
        pytest.skip("examples of one identifier are one example already in the shards")
    trained(drawn, "albef", tmp_path / "full", target=1.0)
    raw = tmp_path / "raw"
    shutil.copytree(root / "raw", raw)
    if task == "snli_ve":
        lines = [json.loads(line) for line in (raw / "snli_ve_test.jsonl").read_text().splitlines()]
        lines[1]["pairID"] = lines[0]["pairID"]
        (raw / "snli_ve_test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        path = raw / "v2_OpenEnded_mscoco_val2014_questions.json"
        value = json.loads(path.read_text())
        value["questions"][1]["question_id"] = value["questions"][0]["question_id"]
        path.write_text(json.dumps(value))
    prepare(SourceConfig(name=task, root=str(raw)), tmp_path / "data", workers=1)
    shutil.copytree(root / "tokenizer", tmp_path / "tokenizer")
    said = r"1 question_ids stand more than once, the first ones \d+" if task == "vqa" else "stands twice in this split"
    with pytest.raises(UserError, match=said):
        evaluated((task, tmp_path), tmp_path / "e", {"full": tmp_path / "full/export"})


def test_scores_that_are_no_numbers_are_refused(drawn: tuple[str, Path], tmp_path: Path) -> None:
    trained(drawn, "albef", tmp_path / "full", target=1.0)
    tensors, described = load_weights(tmp_path / "full/export")
    name = next(name for name in reversed(tensors) if name.startswith("cls_head."))
    tensors[name].view(-1)[0] = torch.nan
    more = (
        {"answers.json": json.loads((tmp_path / "full/export/answers.json").read_text())} if drawn[0] == "vqa" else {}
    )
    export_weights(tmp_path / "bad", tensors, described, Tokenizer.load(tmp_path / "full/export"), more)
    with pytest.raises(UserError, match=r"scores of .* are not finite"):
        evaluated(drawn, tmp_path / "e", {"bad": tmp_path / "bad"})


def test_questions_without_annotators_are_answered_but_not_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_published("vqa", tmp_path / "raw", {"train": 40, "test": 6}, 32, 0)
    prepare(SourceConfig(name="vqa", root=str(tmp_path / "raw")), tmp_path / "data", workers=1)
    Tokenizer.train(list(TEXT.values()), TokenizerConfig(vocab_size=64)).save(tmp_path / "tokenizer")
    trained(("vqa", tmp_path), "albef", tmp_path / "full", target=1.0)
    splits = {"evaluate.statement_splits": ["test"]}
    assert evaluated(("vqa", tmp_path), tmp_path / "e", {"full": tmp_path / "full/export"}, **splits) == []
    said = json.loads((tmp_path / "e/predictions/full-test.json").read_text())
    folder = ShardFolder(tmp_path / "data" / "test")
    asked = [question["question_id"] for row in range(6) for question in folder.read(row).fields["questions"]]
    assert [row["question_id"] for row in said] == asked
    answers = json.loads((tmp_path / "full/export/answers.json").read_text())
    assert {row["answer"] for row in said} <= set(answers)
    monkeypatch.setattr(StepLoader, "__iter__", lambda loader: pytest.fail("the split is judged for nothing"))
    with pytest.raises(UserError, match=r"none of its questions has annotators' answers; .* --predictions FILE"):
        on_rank(Process(), Evaluation(model=tmp_path / "full/export", task="vqa", split=str(folder.path)))


def test_statement_exports_of_before_there_were_tasks_are_read(tmp_path: Path) -> None:
    model = ClassificationModel(small_model("albef"), MIXED)
    described = {"kind": "statement", "model": asdict(small_config()), "trimmers": asdict(MIXED), "target": 2.0}
    export_weights(tmp_path / "old", model.state_dict(), described)
    found, _ = load_classification_model(tmp_path / "old")
    assert found.classes.names == ("false", "true")
    assert load_weights(tmp_path / "old")[0].keys() == found.state_dict().keys()


def test_heads_are_meters_classifier_on_the_features_that_matching_looks_at() -> None:
    for name in FUSING:
        backbone = small_model(name)
        head = ClassificationModel(backbone, None, classes=ANSWERS).cls_head
        assert isinstance(head, TaskClassifier)
        first, last = (part for part in head if isinstance(part, torch.nn.Linear))
        assert first.in_features == first.out_features == backbone.itm_head.in_features
        assert last.out_features == 7
