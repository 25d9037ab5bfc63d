"""Captioning, and answering by a decoder, through the worker's entry: trained, exported, evaluated, scored."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.errors import UserError
from data_prep.shapes_published import write_published
from data_prep.shapes_told import DOMAINS
from data_prep.sources import SourceConfig, prepare
from pipeline.captioner import Captioner
from pipeline.data.loader import LoaderConfig
from pipeline.data.shards import ShardFolder
from pipeline.data.text import Tokenizer, TokenizerConfig
from pipeline.data.transforms import eval_image, normalise
from pipeline.evaluation.exported import Evaluation, evaluate_export
from pipeline.exports import load_classification_model
from pipeline.generation import prompt_ids
from pipeline.metrics.captions import missing_for_captions
from pipeline.metrics.tasks import SCORED
from pipeline.models.config import BackboneName
from pipeline.process import Process
from pipeline.progress import read_metrics
from pipeline.tasks.classification import ClassificationModel
from pipeline.tasks.generative_vqa import AnsweringModel
from pipeline.trimmed_model import TrimmedModel
from pipeline.worker import parse, run_job
from tests.pipeline.evaluation.exports import split
from tests.pipeline.test_task_stages import evaluated, trained
from tests.pipeline.test_train import job_of
from tests.pipeline.test_trim_stages import picture

SIZES = {"coco": {"train": 24, "val": 6}, "nocaps": {"val": 6}, "vqa": {"train": 40, "val": 10}}
SEARCH = {"max_length": 14}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn data sets, their shards and a tokenizer."""
    root = tmp_path_factory.mktemp("decoders")
    for name, sizes in SIZES.items():
        write_published(name, root / name / "raw", sizes, 32, 0)
        source = SourceConfig(name=name, root=str(root / name / "raw"), shard_samples=10)
        prepare(source, root / "data" / name, workers=1)
    words = "a picture of two small red stars on the left and large blue circle is there how many yes no 0 1 2 3 4 5"
    Tokenizer.train([words], TokenizerConfig(vocab_size=128)).save(root / "tokenizer")
    return root


@pytest.fixture(scope="module")
def captioner(root: Path) -> Path:
    """The stage's folder of a captioner that is trimmed."""
    trained_on(root, "captioning", root / "trim", target=1.4)
    return root / "trim"


def trained_on(root: Path, task: str, folder: Path, backbone: BackboneName = "blip", **more: Any) -> dict[str, Any]:
    split = "coco/train" if task == "captioning" else "vqa/train"
    run = {"trim.splits": {split: 1.0}, "trim.captions": SEARCH, **more.pop("run", {})}
    return trained((task, root), backbone, folder, run=run, **more)


@pytest.mark.timeout(300)
def test_a_trimmed_captioner_trains_exports_and_is_scored_as_its_result_file_is(
    root: Path, captioner: Path, tmp_path: Path
) -> None:
    lines = read_metrics(captioner / "metrics.jsonl")
    assert {"loss/task", "loss/full", "loss/divergence", "loss/cost"} <= lines[-1].keys()
    assert json.loads((captioner / "progress.json").read_text())["text"] == "settling the speed-up"
    rows = told_rows(root, captioner, tmp_path, "coco/val")
    file = tmp_path / "predictions" / "trim-coco-val.json"
    said = json.loads(file.read_text())
    raw = root / "coco" / "raw" / "captions_val2014.json"
    assert {one["image_id"] for one in said} == {image["id"] for image in json.loads(raw.read_text())["images"]}
    scores = SCORED["captions"](file, raw, False)
    wanted = [{"metric": s.metric, "value": s.value, "low": s.low, "high": s.high} for s in scores]
    assert [{key: row[key] for key in wanted[0]} for row in rows] == wanted
    assert {"BLEU@4", "METEOR", "ROUGE-L", "CIDEr"} <= {row["metric"] for row in rows}
    assert {row["task"] for row in rows} == {"captioning"} and rows[0]["gmacs"] < rows[0]["full_gmacs"]
    assert Captioner.from_pretrained(captioner / "export").config.max_length == SEARCH["max_length"]
    told = Captioner.from_pretrained(captioner / "export").caption([picture(), picture()], batch_size=1)
    assert told[0] == told[1]


def scored_stage(
    root: Path, folder: Path, metric: str, target: float = 1.4, **more: Any
) -> tuple[dict[str, Any], dict[int, dict[str, float]]]:
    """What a captioner's training says of the best weights, and its lines with scores by step."""
    validation = {"split": "coco/val", "every_steps": 3, "metric": metric, "batch_size": 4, **more}
    counts = trained_on(root, "captioning", folder, target=target, run={"trim.validation": validation})
    lines = {line["step"]: line for line in read_metrics(folder / "metrics.jsonl")}
    return counts["best"], {step: line for step, line in lines.items() if f"validation/{metric}" in line}


@pytest.mark.timeout(300)
def test_the_captioner_that_tells_most_words_rightly_is_exported(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # no Java
    best, scored = scored_stage(root, tmp_path / "trim", "word_accuracy", target=1.0)
    values = {step: line["validation/word_accuracy"] for step, line in scored.items()}
    assert sorted(values) == [3, 6] and best["value"] == max(values.values()) == values[best["step"]]
    model, described = load_classification_model(tmp_path / "trim" / "export")
    assert described["validation"] == best and model.trimmers is None
    right, words = words_by_hand(root, model)
    assert words > 20 and best["value"] == pytest.approx(100 * right / words)


def words_by_hand(root: Path, model: ClassificationModel) -> tuple[int, int]:
    """Of every picture's first caption, one word at a time behind the right ones: how many are told rightly."""
    tokenizer = Tokenizer.load(root / "tokenizer").behind("a picture of")
    given = prompt_ids(tokenizer.behind(""), "a picture of").shape[1]
    config = parse(LoaderConfig, job_of(root, root, "trim")["run"]["loader"])
    folder, right, words = ShardFolder(root / "data/coco/val"), 0, 0
    for row in range(len(folder)):
        sample = folder.read(row)
        pixels = torch.tensor(eval_image(sample.image, config)).permute(2, 0, 1)[None]
        ids_1L, mask_1L = tokenizer.encode(sample.captions[:1], config.max_tokens)
        for length in range(given, int(mask_1L.sum())):
            seen_1L, inputs = torch.arange(mask_1L.shape[1])[None] <= length, normalise(pixels, config.mean, config.std)
            with torch.no_grad():
                scores_MV = model.classify(inputs, ids_1L, seen_1L, [])
            right, words = right + int(scores_MV[-1].argmax() == ids_1L[0, length]), words + 1
    return right, words


@pytest.mark.timeout(300)
def test_scoring_words_changes_nothing_of_training_and_counts_what_is_trimmed(
    root: Path, captioner: Path, tmp_path: Path
) -> None:
    best, scored = scored_stage(root, tmp_path / "trim", "word_accuracy", samples=5)
    assert sorted(scored) == [3, 6] and best["value"] == scored[best["step"]]["validation/word_accuracy"]
    assert scored[6]["validation/cost"] != 1, "trimmers cost, whatever they take out"
    lines, plain = (read_metrics(folder / "metrics.jsonl") for folder in (tmp_path / "trim", captioner))
    assert [line["loss"] for line in lines] == [line["loss"] for line in plain]


@pytest.mark.slow  # Java programs take seconds to start
@pytest.mark.timeout(300)
@pytest.mark.skipif(missing_for_captions() is not None, reason=str(missing_for_captions()))
def test_the_captioner_with_the_highest_cider_is_exported(root: Path, tmp_path: Path) -> None:
    best, scored = scored_stage(root, tmp_path / "trim", "CIDEr")
    assert best["metric"] == "CIDEr" and best["value"] == scored[best["step"]]["validation/CIDEr"]
    assert {"validation/BLEU@4", "validation/METEOR", "validation/ROUGE-L"} <= scored[6].keys()
    assert scored[6]["validation/cost"] != 1
    few, scored = scored_stage(root, tmp_path / "few", "CIDEr", samples=3)
    assert few["value"] == scored[few["step"]]["validation/CIDEr"]


def test_a_held_out_split_without_captions_is_refused_before_training(root: Path, tmp_path: Path) -> None:
    split(root / "data" / "untold", 3, captions=[0])
    with pytest.raises(UserError, match=r"untold has 3 samples but no captions; choose data that has them"):
        scored_stage(root, tmp_path / "trim", "word_accuracy", split="untold")
    assert not (tmp_path / "trim" / "metrics.jsonl").exists()


def told_rows(root: Path, captioner: Path, folder: Path, split: str) -> list[dict[str, Any]]:
    given = {"tokenizer": str(root / "tokenizer"), "pretrained": None, "trimmed": {"trim": str(captioner / "export")}}
    run = {"evaluate.statement_splits": [split]}
    rows: list[dict[str, Any]] = run_job(job_of(root / "data", folder, "evaluate", run=run, **given), Process())["rows"]
    return rows


@pytest.mark.timeout(300)
def test_pictures_that_nobody_told_of_are_drawn_with_what_the_captioner_told(
    root: Path, captioner: Path, tmp_path: Path
) -> None:
    split(root / "data" / "silent", 3, captions=[0])
    assert told_rows(root, captioner, tmp_path, "silent") == []
    told = json.loads((tmp_path / "predictions" / "trim-silent.json").read_text())
    trained = {"pretrained": None, "trimmed": {"trim": str(captioner / "export")}}
    run = {"evaluate.statement_splits": ["silent"], "evaluate.pictures": 2}
    given = {"tokenizer": str(root / "tokenizer"), **trained}
    run_job(job_of(root / "data", tmp_path, "survivors", run=run, **given), Process())
    drawn = json.loads((tmp_path / "survivors.json").read_text())
    assert [[one["text"] for one in each["sentences"]] for each in drawn] == [[one["caption"]] for one in told[:2]]
    for each in drawn:
        (said,) = each["sentences"]
        kept = [len(step["kept"]) for step in said["steps"]]
        assert said["steps"][-1]["name"].startswith("decoder layer") and sorted(kept, reverse=True) == kept
        assert said["gmacs"] > 0 and said["model"] == "1.4x"


@pytest.mark.slow  # scores four corpora twice, each by Java programs that take seconds to start
@pytest.mark.timeout(300)
def test_zero_shot_captions_are_scored_by_domain_too(root: Path, captioner: Path, tmp_path: Path) -> None:
    rows = told_rows(root, captioner, tmp_path, "nocaps/val")
    splits = list(dict.fromkeys(row["split"] for row in rows))
    assert splits == ["nocaps/val", *(f"nocaps/val {domain}" for domain in DOMAINS)]
    assert [next(row["samples"] for row in rows if row["split"] == split) for split in splits] == [6, 2, 2, 2]
    costs = [next(row["gmacs"] for row in rows if row["split"] == split) for split in splits]
    assert sum(costs[1:]) / 3 == pytest.approx(costs[0]) and len(set(costs)) > 1
    given = {"model": captioner / "export", "task": "captioning", "split": str(root / "data/nocaps/val")}
    found = evaluate_export(Evaluation(**given, batch_size=1, predictions=tmp_path / "said.json"), Process())
    assert [score["value"] for score in found["scores"]] == [row["value"] for row in rows]
    cider = [score["metric"] for score in found["scores"] if score["metric"].startswith("CIDEr")]
    assert cider == ["CIDEr", *(f"CIDEr {domain}" for domain in DOMAINS)]
    assert (tmp_path / "said.json").read_bytes() == (tmp_path / "predictions" / "trim-nocaps-val.json").read_bytes()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backbone", ["albef", "blip"])
def test_a_decoder_answers_questions_by_ranking_the_list(backbone: BackboneName, root: Path, tmp_path: Path) -> None:
    run = {"trim.answers": {"at_least": 3, "candidates": 4}}
    counts = trained_on(root, "vqa_generative", tmp_path / "trim", backbone, target=1.3, run=run)
    assert 1 / counts["calibration"]["after"] == pytest.approx(1.3, rel=0.15)
    assert len(read_metrics(tmp_path / "trim" / "metrics.jsonl")) == 6
    export = tmp_path / "trim" / "export"
    model, _ = load_classification_model(export)
    assert isinstance(model, AnsweringModel) and model.classes.candidates == 4 and len(model.classes.names) > 4
    found = [
        evaluated(("vqa", root), tmp_path / str(size), {"trim": export},
                  **{"evaluate.statement_splits": ["vqa/val"], "evaluate.batch_size": size})
        for size in (3, 64)
    ]  # fmt: skip
    assert [row["value"] for row in found[0]] == [row["value"] for row in found[1]]
    file = tmp_path / "3" / "predictions" / "trim-vqa-val.json"
    scores = SCORED["vqa"](file, root / "vqa" / "raw" / "v2_mscoco_val2014_annotations.json", False)
    assert [score.value for score in scores] == [row["value"] for row in found[0]]
    assert {row["task"] for row in found[0]} == {"vqa_generative"}
    said = TrimmedModel.from_pretrained(export).predict([picture()], ["how many stars are there?"])[0]
    assert said.answer in model.classes.names and 0 < said.probability <= 1


@pytest.mark.timeout(300)
def test_a_trimmed_answerer_begins_from_the_full_one_each_part_at_its_own_rate(root: Path, tmp_path: Path) -> None:
    run = {"trim.answers": {"at_least": 3, "candidates": 4}, "trim.lr_scales": {"text_decoder": 2.0}}
    trained_on(root, "vqa_generative", tmp_path / "full", "albef", target=1.0, run=run)
    run |= {"trim.init": "finetuned", "trim.targets": [1.0, 1.3]}
    full = str(tmp_path / "full" / "export")
    trained_on(root, "vqa_generative", tmp_path / "trim", "albef", target=1.3, run=run, teacher=full)
    assert read_metrics(tmp_path / "trim" / "metrics.jsonl")[-1]["lr/text_decoder"] > 0
    assert load_classification_model(tmp_path / "trim" / "export")[1]["kind"] == "vqa_generative"


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ({"trim.method": "evit"}, "goes with trim.method smarttrim or local, not evit"),
        ({"trim.targets": ["5 ms"]}, "5 ms is not timed for trim.task=captioning"),
        ({"trim.keep_pruning": True}, "keep_pruning=true does not go with trim.task=captioning"),
        (
            {"trim.captions": {"max_length": 9, "prompt": "red,red,red,red,red"}},
            "trim.captions.max_length=9 leaves no room behind the 10 tokens of .*; make it 11 at least",
        ),
        ({"trim.max_tokens": 5}, "trim.max_tokens=5 leaves no room behind the 4 tokens of .*; make it 6 at least"),
    ],
)
def test_what_captions_cannot_have_is_refused(root: Path, run: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        trained_on(root, "captioning", tmp_path / "trim", target=1.3, run=run)


@pytest.mark.parametrize(
    ("task", "backbone", "able"),
    [("captioning", "albef", "blip"), ("captioning", "meter", "blip"), ("vqa_generative", "meter", "albef or blip")],
)
def test_other_backbones_have_no_decoder(
    task: str, backbone: BackboneName, able: str, root: Path, tmp_path: Path
) -> None:
    wanted = f"{task} wants a decoder, which {backbone} has not; pre-train with --model.backbone {able}, or"
    with pytest.raises(UserError, match=wanted):
        trained_on(root, task, tmp_path / "trim", backbone, target=1.0)
