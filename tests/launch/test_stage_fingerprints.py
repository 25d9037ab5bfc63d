"""What makes a stage begin anew, and what does not; what a stage says of its batch when it begins."""

import json
from pathlib import Path
from typing import Any

import pytest

from launch.config import RunConfig
from launch.graph import fingerprints
from launch.local_backend import LocalBackend
from launch.reading import as_json, dump_config, read_config
from launch.stage_parts import differences
from launch.stages import build_stages

TINY = Path(__file__).with_name("tiny.yaml")


def pretrain_of(tmp_path: Path, *overrides: str) -> tuple[str, str]:
    """The fingerprint of the pre-training stage, and its words."""
    stages = build_stages(read_config(RunConfig, [TINY], overrides), tmp_path, LocalBackend(0, 1))
    return fingerprints(stages)["pretrain"], next(stage.says for stage in stages if stage.name == "pretrain")


@pytest.mark.parametrize(
    ("overrides", "same"),
    [
        (["--engine.name=deepspeed", "--engine.zero_stage=3", "--engine.offload_optimizer=true"], True),
        (["--engine.recompute=true", "--checkpoint.path=memory://x", "--checkpoint.keep_best=2"], True),
        (["--engine.name=deepspeed", '--engine.deepspeed_json={"wall_clock_breakdown": true}'], True),
        (["--engine.precision=bf16"], False),
        (["--engine.grad_clip=2"], False),
        (["--engine.micro_batch=4"], False),
    ],
)
def test_where_an_update_is_computed_is_no_reason_to_begin_anew(
    overrides: list[str], same: bool, tmp_path: Path
) -> None:
    assert (pretrain_of(tmp_path)[0] == pretrain_of(tmp_path, *overrides)[0]) == same


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "an update: 8 samples = 1 workers x 8"),
        (
            ["--engine.micro_batch=4"],
            "an update: 8 samples = 1 workers x 2 parts x 4; contrast is among the 4 pairs of a part over all workers "
            "(and 16 of the queue), not among 8; matching draws negatives from 4 pairs",
        ),
        (
            ["--engine.micro_batch=2", "--cluster.workers=2", "--pretrain.objectives.negatives=global"],
            "an update: 8 samples = 2 workers x 2 parts x 2; contrast is among the 4 pairs of a part over all workers "
            "(and 16 of the queue), not among 8; matching draws negatives from 4 pairs",
        ),
    ],
)
def test_a_stage_says_how_an_update_is_dealt_out(
    overrides: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2" if "2 workers" in words else "1")  # torchrun's processes are the workers
    assert pretrain_of(tmp_path, *overrides)[1] == words


def test_captions_that_nothing_could_score_are_evaluated_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def digests(task: str) -> dict[str, str]:
        config = read_config(
            RunConfig, [TINY], [f"--trim.task={task}", "--model.backbone=blip", "--model.text.fusion_layers=0"]
        )
        return fingerprints(build_stages(config, tmp_path, LocalBackend(0, 1)))

    (tmp_path / "java").write_text("#!/bin/sh\n")
    (tmp_path / "java").chmod(0o755)
    tasks = ("captioning", "statement")
    monkeypatch.setenv("PATH", str(tmp_path))
    scored = {task: digests(task) for task in tasks}
    (tmp_path / "java").unlink()
    changed = {name for task in tasks for name, digest in digests(task).items() if digest != scored[task][name]}
    assert changed == {name for name in scored["captioning"] if name.startswith("evaluate-trim-captioning")} != set()


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("--pretrain.loop.bad_updates.action=skip", True),
        ("--pretrain.loop.checkpoint_seconds=900", True),
        ("--pretrain.loop.log_every=7", True),
        ("--pretrain.loop.noise_scale.every=3", True),
        ("--loader.workers=3", True),
        ("--loader.prefetch=5", True),
        ("--loader.stall_seconds=9", True),
        ("--loader.max_bad_share=0.5", True),
        ("--pretrain.loop.schedule.warmup_share=0.3", False),
        ("--pretrain.loop.samples=72", False),
        ("--loader.window=32", False),
        ("--seed=9", False),
    ],
)
def test_how_a_training_is_looked_after_is_no_reason_to_begin_anew(override: str, same: bool, tmp_path: Path) -> None:
    assert (pretrain_of(tmp_path)[0] == pretrain_of(tmp_path, override)[0]) == same


def test_the_loop_of_a_trim_stage_is_looked_after_likewise(tmp_path: Path) -> None:
    def digests(*overrides: str) -> dict[str, str]:
        return fingerprints(build_stages(read_config(RunConfig, [TINY], overrides), tmp_path, LocalBackend(0, 1)))

    assert digests() == digests("--trim.loop.log_every=9", "--trim.loop.bad_updates.action=rewind")
    assert digests() != digests("--trim.loop.samples=40")


def trim_of(tmp_path: Path, *overrides: str) -> Any:
    """What the 2.0x stage depends on."""
    stages = build_stages(read_config(RunConfig, [TINY], overrides), tmp_path, LocalBackend(0, 1))
    return next(stage.parts["trim"] for stage in stages if stage.name == "trim-statement-2.0x")


def test_what_was_trained_before_there_was_a_key_stays_so(tmp_path: Path) -> None:
    before = trim_of(tmp_path)
    assert "groups" not in before["smarttrim"] and "noise_fade" not in before["smarttrim"]["trimmers"]
    assert trim_of(tmp_path, "--trim.smarttrim.groups=[vision, text, msa, mca]") == before
    assert trim_of(tmp_path, "--trim.smarttrim.groups=[vision]")["smarttrim"]["groups"] == ["vision"]
    fading = trim_of(tmp_path, "--trim.smarttrim.trimmers.noise_fade=0.5")
    assert fading["smarttrim"]["trimmers"] == before["smarttrim"]["trimmers"] | {"noise_fade": 0.5}


@pytest.mark.parametrize(
    ("clean", "said"),
    [(None, True), ("true", True), ("albef", True), ("false", False), ("none", False), ("blip", "blip")],
)
def test_shards_depend_on_a_tokenizer_as_before_cleaning_had_names(
    clean: str | None, said: bool | str, tmp_path: Path
) -> None:
    config = read_config(RunConfig, [TINY], [] if clean is None else [f"--tokenizer.clean={clean}"])
    shard = build_stages(config, tmp_path, LocalBackend(0, 1))[0]
    before = as_json(config)["tokenizer"] | {"clean": said}
    assert before.pop("end") is True  # said of tokenizers without one alone
    assert json.dumps(shard.parts["tokenizer"], sort_keys=True) == json.dumps(before, sort_keys=True)
    assert sorted(before) == ["clean", "max_words", "path", "vocab_size"]
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert read_config(RunConfig, [tmp_path / "config.yaml"], []) == config


def test_what_was_evaluated_before_there_was_a_precision_stays_so(tmp_path: Path) -> None:
    def parts(*overrides: str) -> dict[str, Any]:
        stages = build_stages(read_config(RunConfig, [TINY], overrides), tmp_path, LocalBackend(0, 1))
        return {stage.name: stage.parts for stage in stages}

    before, half = parts("--evaluate.precision=float32"), parts("--evaluate.precision=bf16")
    assert before == parts() and all("precision" not in each.get("evaluate", {}) for each in before.values())
    changed = {name for name in half if half[name] != before[name]}
    assert changed == {name for name in half if name.startswith(("evaluate-", "survivors"))}
    assert all(half[name]["evaluate"]["precision"] == "bf16" for name in changed)


def test_what_differs_is_told_by_key_and_value() -> None:
    old: dict[str, Any] = {"pretrain": {"loop": {"samples": 8}, "optimizer": {"lr": 0.1}}, "seed": 1}
    assert differences(old, old | {"seed": 2}) == "seed was 1, is 2"
    assert differences(old, old) == ""
    assert differences(old, {"a": 1, "b": (2,), "c": 3}).endswith("; and 3 more")


def test_what_is_computed_otherwise_than_before_begins_anew(tmp_path: Path) -> None:
    def parts(*overrides: str) -> dict[str, Any]:
        stages = build_stages(read_config(RunConfig, [TINY], overrides), tmp_path, LocalBackend(0, 1))
        return {stage.name: stage.parts.get("rules") for stage in stages if stage.name.startswith("trim-")}

    targets = "--trim.targets=[1.0, 2.0]"
    assert parts(targets) == {"trim-statement-1.0x": None, "trim-statement-2.0x": "2026-11-23, groups"}
    assert parts(targets, "--trim.method=trips") == {"trim-statement-1.0x": None, "trim-statement-trips-2.0x": None}
    answers = {"trim-vqa-1.0x": "2026-11-23", "trim-vqa-2.0x": "2026-11-23, groups"}
    assert parts(targets, "--trim.task=vqa") == answers
