"""What is refused before anything starts: each with its numbers and a way out."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from data_prep.errors import UserError
from data_prep.shapes_published import write_published
from data_prep.sources import SourceConfig, prepare
from launch import preflight
from launch.config import RunConfig
from launch.machine import available_cpus, available_gpus, hardware, versions
from launch.reading import read_config
from pipeline.metrics.captions import _wrong_with

TINY = Path(__file__).with_name("tiny.yaml")


CAPTIONS = ["--trim.task=captioning", "--model.backbone=blip", "--model.text.fusion_layers=0", "--trim.targets=[1.0]"]
BEYOND_GPUS = ["--cluster.gpus_per_worker=1000", "--engine.name=deepspeed"]
SPREAD = ["--cluster.placement=strict_spread", "--engine.name=deepspeed"]
NO_TRIMMING = ["--trim.targets=[]", "--evaluate.statement_splits=[]"]
SCORED = ["--trim.validation.every_steps=2", "--trim.validation.split=test"]
FEW = {"train": 4, "val": 0, "test": 0, "unseen": 0}


def config(*overrides: str) -> RunConfig:
    return read_config(RunConfig, [TINY], overrides)


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_sound_run_passes(tmp_path: Path) -> None:
    preflight.check(config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["--launcher=ray", f"--cluster.workers={available_cpus() + 1}", "--engine.name=deepspeed"],
            [f"this machine has {available_cpus()}", f"--cluster.workers {available_cpus()}"],
        ),
        (["--launcher=ray", "--cluster.cpus_per_worker=1000"], ["1000", "--cluster.cpus_per_worker"]),
        (
            ["--launcher=ray", f"--cluster.gpus_per_worker={available_gpus() + 1}"],
            [f"this machine has {available_gpus()}", "--cluster.gpus_per_worker"],
        ),
        (
            ["--launcher=ray", "--cluster.workers=2", "--cluster.cpus_per_worker=0.5", *BEYOND_GPUS],
            ["2000 GPUs", f"set --cluster.gpus_per_worker {min(1, available_gpus())}"],
        ),
        (
            ["--launcher=ray", "--cluster.workers=2", "--cluster.cpus_per_worker=0.5", *SPREAD],
            ["placement=strict_spread", "each of cluster.workers=2", "only this one", "--cluster.placement spread"],
        ),
        (["--pretrain.loop.global_batch=9"], ["pretrain.loop.global_batch=9", "multiple of 2", "global_batch 8"]),
        (
            ["--trim.targets=[1.0, 500x]"],
            ["500.0x cannot be reached", "with a text of 24 tokens", "the highest target is 8.8"],
        ),
        (["--trim.targets=[1e-5 GFLOPs]"], ["1e-05 GMACs cannot be reached", "which is"]),
        (["--trim.targets=[2.0x, 1 GFLOPs]"], ["1 GMACs asks for no trimming", "1.0x"]),
        (["--trim.targets=[2.0, 2x]"], ["trim.targets=[2.0, '2x']", "different"]),
        (
            [*CAPTIONS, "--trim.captions.max_length=5", "--trim.captions.prompt=a picture of the"],
            ["trim.captions.max_length=5 leaves no room behind the 5 tokens", "make it 6 at least"],
        ),
        ([*CAPTIONS, "--trim.max_tokens=5"], ["trim.max_tokens=5 leaves no room behind the 4 tokens"]),
        (["--trim.targets=[fast]"], ["'fast' is no target", "2.0x", "12 GFLOPs", "35 ms"]),
        (["--trim.image_size=50"], ["trim.image_size=50", "model.vision.patch=8", "try 48"]),
        (["--trim.image_size=64", "--trim.targets=[1.0, 500x]"], ["cannot be reached", "the highest target is "]),
        (["--trim.lr_scales.vision=2"], ["trim.lr_scales names 'vision'", "visual_encoder"]),
        (["--trim.lr_scales.visual_encoder=0"], ["trim.lr_scales.visual_encoder=0", "above 0"]),
        (["--trim.validation.every_steps=2"], ["trim.validation.split", "'val'", "data.sizes"]),
        (
            [*SCORED, "--trim.validation.metric=accuracy yes/no"],
            ["trim.validation.metric=accuracy yes/no is no score of trim.task=statement: accuracy, consistency"],
        ),
        ([*SCORED, "--trim.validation.metric=consistency_of"], ["consistency_of is no score of trim.task=statement"]),
        (["--trim.validation.every_steps=-1"], ["trim.validation.every_steps=-1", "at least 0"]),
        (["--trim.loop.global_batch=7"], ["trim.loop.global_batch=7", "--trim.loop.global_batch 8"]),
        (['--pretrain.splits={"nowhere": 1}'], ["pretrain.splits", "'nowhere'", "train"]),
        (['--pretrain.splits={"train": 0}'], ["pretrain.splits", "above 0"]),
        (["--evaluate.statement_splits=[unseen]"], ["evaluate.statement_splits", "data.sizes"]),
        (["--data.name=nlvr", "--data.sizes={}"], ["data.root is not given", "--data.root DIR"]),
        (["--data.name=flickr8k", "--data.sizes={}", "--data.root=none"], ["data.root=none", "captions.txt"]),
        (
            ["--launcher=ray", "--cluster.workers=2", "--cluster.cpus_per_worker=0.5"],
            ["engine.name=torch", "deepspeed"],
        ),
        (["--checkpoint.path=nowhere://bucket/run"], ["nowhere://", "nothing here can write"]),
        (
            ["--engine.name=deepspeed", '--engine.deepspeed_json={"wall_clock_brakedown": true}'],
            ["engine.deepspeed_json", "did you mean wall_clock_breakdown?"],
        ),
        (
            ["--engine.name=deepspeed", '--engine.deepspeed_json={"sparse_attention": {"mode": "dense"}}'],
            ["engine.deepspeed_json sets", "sparse_attention"],
        ),
        (["--engine.micro_batch=1"], ["engine.micro_batch=1", "must be at least 2", "--engine.micro_batch 2"]),
    ],
)
def test_what_cannot_work_is_refused_with_a_remedy(tmp_path: Path, overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        preflight.check(config(*overrides), tmp_path)
    assert not [word for word in words if word not in str(caught.value)], caught.value


def test_trim_alone_wants_a_target_and_a_run_need_not_have_one(tmp_path: Path) -> None:
    untrimmed = config(*NO_TRIMMING)
    preflight.check(untrimmed, tmp_path / "run")
    with pytest.raises(UserError, match=r"trim\.targets=\[\] leaves nothing to trim; .* --targets"):
        preflight.check(untrimmed, tmp_path / "run", "trim")


def test_torchruns_processes_count_as_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="3 workers"):
        preflight.check(config("--engine.name=deepspeed"), tmp_path)


def test_a_disk_that_is_too_full_is_named_with_both_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(UserError, match=r"needs about 0\.\d+ GiB more.* has 0\.00 GiB free"):
        preflight.check(config(), tmp_path / "run")


def test_the_space_needed_grows_with_data_model_and_targets() -> None:
    base = preflight.needed_bytes(config())
    assert preflight.needed_bytes(config("--data.sizes.train=100000")) > base + 10**8
    assert preflight.needed_bytes(config("--model.vision.width=1024", "--model.text.width=1024")) > base + 10**8
    assert preflight.needed_bytes(config("--trim.targets=[1.0, 2.0, 3.0]")) > base


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = config()
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(UserError, match="cannot be written"):
        preflight.check(tiny, tmp_path / "run")


def test_the_machine_describes_itself() -> None:
    assert hardware()["cpus"] == available_cpus() >= 1
    assert versions()["torch"][0].isdigit()


def test_that_trim_stages_are_not_compiled_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    preflight.check(config("--engine.compile=true"), tmp_path / "run")
    assert "engine.compile is for pre-training only" in caplog.text
    caplog.clear()
    preflight.check(config("--engine.compile=true", *NO_TRIMMING), tmp_path / "run")
    assert "engine.compile" not in caplog.text


def test_captions_that_nothing_can_score_are_told_of_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no Java
    preflight.check(config(*CAPTIONS), tmp_path / "run")
    assert "captions will be told, but not scored" in caplog.text and "install a Java runtime" in caplog.text


def test_best_captioners_need_the_programs_that_score_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no Java
    with pytest.raises(UserError, match=r"trim\.validation\.metric=CIDEr: caption metrics need .*word_accuracy"):
        preflight.check(config(*CAPTIONS, *SCORED, "--trim.validation.metric=CIDEr"), tmp_path / "run")
    preflight.check(config(*CAPTIONS, *SCORED, "--trim.validation.metric=word_accuracy"), tmp_path / "run")
    with pytest.raises(UserError, match=r"metric=accuracy is no score of trim\.task=captioning: BLEU@1, .*CIDEr"):
        preflight.check(config(*CAPTIONS, *SCORED), tmp_path / "run")


def test_what_another_cluster_needs_is_not_looked_for_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no Java
    words = [*CAPTIONS, *SCORED, "--trim.validation.metric=CIDEr", "--cluster.address=ray://head:10001"]
    preflight.check(config(*words, "--launcher=ray"), tmp_path / "run")
    preflight.check(config(*words, "--launcher=ray", "--cluster.workers=2", *SPREAD), tmp_path / "run")
    with pytest.raises(UserError, match=r"trim\.validation\.metric=CIDEr: caption metrics need"):
        preflight.check(config(*words, "--launcher=local"), tmp_path / "run")


def test_a_java_that_does_not_start_counts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'Error: no memory' >&2\nexit 3\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    words = [*CAPTIONS, *SCORED, "--trim.validation.metric=CIDEr", "--launcher=local"]
    with pytest.raises(UserError, match=r"and `java` ends with code 3 \(Error: no memory\): install a Java runtime"):
        preflight.check(config(*words), tmp_path / "run")
    java.write_text("no program")
    _wrong_with.cache_clear()
    with pytest.raises(UserError, match=r"and `java` does not start \(.*\): install"):
        preflight.check(config(*words), tmp_path / "run")
    _wrong_with.cache_clear()


def test_consistency_of_pairs_wants_the_corpuss_identifiers(tmp_path: Path) -> None:
    root, sizes = tmp_path / "raw", {"train": 4, "test1": 2}
    write_published("nlvr2", root, sizes, 32, 0)
    lines = [json.loads(line) for line in (root / "test1.json").read_text().splitlines()]
    stems = [line.pop("identifier").rpartition("-")[0] for line in lines]
    images = [{"images": [f"images/test1/{stem}-img{side}.png" for side in (0, 1)]} for stem in stems]
    (tmp_path / "nlvr_val.json").write_text(json.dumps([a | b for a, b in zip(lines, images, strict=True)]))
    prepare(SourceConfig(name="nlvr2", root=str(root)), tmp_path / "data", workers=1)
    given = {"annotations": (str(tmp_path / "nlvr_val.json"),), "images": (str(root / "images"),)}
    prepare(SourceConfig(name="albef", **given), tmp_path / "lists", workers=1)
    (tmp_path / "lists/val").rename(tmp_path / "data/val")
    words = ["--trim.task=nlvr2", "--data.name=shards", f"--data.root={tmp_path / 'data'}", "--data.sizes={}"]
    words += ["--evaluate.retrieval_splits=[]", "--evaluate.statement_splits=[test1]", "--evaluate.pictures=0"]
    words.append("--trim.validation.every_steps=2")
    preflight.check(config(*words), tmp_path / "run")
    words.append("--trim.validation.metric=consistency")
    preflight.check(config(*words, "--trim.validation.split=test1"), tmp_path / "run")
    with pytest.raises(UserError, match=r"metric=consistency cannot be told of 'val': .* has no identifier .*accuracy"):
        preflight.check(config(*words), tmp_path / "run")


def test_what_is_scored_must_have_the_tasks_labels_too(tmp_path: Path) -> None:
    root, sizes = tmp_path / "raw", {"train": 4, "test1": 2}
    write_published("nlvr2", root, sizes, 32, 0)
    prepare(SourceConfig(name="nlvr2", root=str(root)), tmp_path / "data", workers=1)
    prepare(SourceConfig(name="shapes", image_size=32, sizes=FEW), tmp_path / "single", workers=1)
    (tmp_path / "single/train").rename(tmp_path / "data/val")
    words = ["--trim.task=nlvr2", "--data.name=shards", f"--data.root={tmp_path / 'data'}", "--data.sizes={}"]
    words += ["--evaluate.retrieval_splits=[]", "--evaluate.statement_splits=[test1]", "--evaluate.pictures=0"]
    preflight.check(config(*words, "--trim.validation.every_steps=2", "--trim.validation.split=test1"), tmp_path / "r")
    with pytest.raises(UserError, match=r"'val' of data\.name=shards does not have; .* in trim\.validation\.split"):
        preflight.check(config(*words, "--trim.validation.every_steps=2"), tmp_path / "run")
    with pytest.raises(UserError, match=r"'val' of data\.name=shards does not have; .* in evaluate\.statement_splits"):
        preflight.check(config(*words, "--evaluate.statement_splits=[test1,val]"), tmp_path / "run")
    for shard in (tmp_path / "data/val").glob("*.tar"):  # of what cannot be read nothing is claimed
        os.truncate(shard, 0)
    preflight.check(config(*words, "--evaluate.statement_splits=[test1,val]"), tmp_path / "run")


def test_questions_that_are_evaluated_may_be_unanswered_but_need_ids(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    write_published("vqa", root, {"train": 4, "test": 2}, 32, 0)
    prepare(SourceConfig(name="vqa", root=str(root)), tmp_path / "data", workers=1)
    prepare(SourceConfig(name="shapes", image_size=32, sizes=FEW), tmp_path / "nameless", workers=1)
    (tmp_path / "nameless/train").rename(tmp_path / "data/val")
    words = ["--trim.task=vqa", "--data.name=shards", f"--data.root={tmp_path / 'data'}", "--data.sizes={}"]
    words += ["--evaluate.retrieval_splits=[]", "--evaluate.pictures=0", '--pretrain.splits={"val": 1}']
    preflight.check(config(*words, "--evaluate.statement_splits=[test]"), tmp_path / "run")
    with pytest.raises(UserError, match=r" of 'val' has a question without question_id, .*`trimline shard vqa`"):
        preflight.check(config(*words, "--evaluate.statement_splits=[test,val]"), tmp_path / "run")


def test_a_split_without_the_texts_that_a_stage_reads_is_refused_before_the_first_one(tmp_path: Path) -> None:
    prepare(SourceConfig(name="shapes", image_size=32, sizes=FEW), tmp_path / "shapes", workers=1)
    write_published("vqa", tmp_path / "raw", {"val": 2}, 32, 0)
    prepare(SourceConfig(name="vqa", root=str(tmp_path / "raw")), tmp_path / "vqa", workers=1)
    (tmp_path / "vqa/val").rename(tmp_path / "shapes/asked")
    words = ["--data.name=shards", f"--data.root={tmp_path / 'shapes'}", "--data.sizes={}", "--evaluate.pictures=0"]
    words += ["--evaluate.retrieval_splits=[train]", "--evaluate.statement_splits=[train]"]
    preflight.check(config(*words), tmp_path / "run")
    preflight.check(config(*words, *CAPTIONS, "--evaluate.statement_splits=[asked]"), tmp_path / "run")
    retrieval = ["--trim.task=retrieval", "--evaluate.statement_splits=[asked]"]
    preflight.check(config(*words, '--trim.splits={"asked": 1}'), tmp_path / "run", "pretrain")
    preflight.check(config(*words, "--evaluate.retrieval_splits=[asked]"), tmp_path / "run", "trim")
    for more, said in (
        (["--evaluate.statement_splits=[train,asked]"], "evaluate.statement_splits names the split 'asked'"),
        (['--trim.splits={"asked": 1}'], "trim.splits names the split 'asked', which has 2 samples but no statements"),
        (retrieval, "evaluate.statement_splits names the split 'asked', which has 2 samples but no captions"),
        (["--evaluate.retrieval_splits=[asked]"], "evaluate.retrieval_splits names the split 'asked'"),
        (['--pretrain.splits={"asked": 1}'], "'asked', which has 2 samples but no captions, which pre-training wants"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            preflight.check(config(*words, *more), tmp_path / "run")
