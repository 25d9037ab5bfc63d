"""Runs that fine-tune a given model and pre-train none: exports of other runs, imports, and what is refused."""

import json
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from data_prep.errors import UserError
from data_prep.files import read_json, write_json
from launch import preflight
from launch.cli import main
from launch.cluster.jobs import entrypoint_of
from launch.compare import CompareConfig, gathered, trials
from launch.config import RunConfig
from launch.given import SAID, read_run, words_of
from launch.graph import fingerprints
from launch.local_backend import LocalBackend
from launch.reading import read_config
from launch.stages import _Builder, build_stages
from launch.tasks import training_stages
from launch.trained_run import TrainedRun
from pipeline.checkpoint import export_weights
from pipeline.data.text import Tokenizer, TokenizerConfig
from pipeline.evaluation.export_input import tokenizer_of
from pipeline.exports import load_backbone
from pipeline.models.config import BackboneName, ModelConfig
from pipeline.weights.albef import ALBEF
from pipeline.weights.blip import BLIP
from pipeline.weights.mapping import export_tensors
from tests.launch.test_run import ROOT, TINY, run
from tests.pipeline.small import small_model

FEW = ("--trim.loop.samples", "16", "--trim.targets", "[1.0, 2.0]")
SHAPES = "configs/trim/shapes.yaml"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has pre-trained a model."""
    out = tmp_path_factory.mktemp("trained") / "run"
    assert run(out, "--pretrain.loop.samples", "16", command="pretrain") == 0
    return out


@pytest.fixture
def export(trained: Path) -> Path:
    """What it has exported."""
    return trained / "stages/pretrain/export"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of fewer words than the small models have."""
    folder = tmp_path_factory.mktemp("words")
    Tokenizer.train(["a red circle", "a blue star"], TokenizerConfig(vocab_size=40)).save(folder)
    return folder


def save(folder: Path, backbone: BackboneName, **more: Any) -> Path:
    """A small model as `trimline import` leaves it."""
    model = small_model(backbone)
    described = {"kind": "backbone", "model": asdict(model.config), "imported": {"kind": backbone, "from": "x.pth"}}
    export_weights(folder, model.state_dict(), described | more)
    return folder


def read(*words: object, files: tuple[str, ...] = (TINY,)) -> RunConfig:
    return read_run([Path(file) for file in files], [str(word) for word in words])


def digests(config: RunConfig, out: Path) -> dict[str, str]:
    return fingerprints(build_stages(config, out, LocalBackend(0, 1)))


@pytest.fixture
def other(tmp_path: Path) -> str:
    """Another recipe, of another model and other pictures, that says nothing of pre-training."""
    small = yaml.safe_load(Path(TINY).read_text())
    small["pretrain"] = {"pruning": {"method": "none"}}
    small["model"] = {"embed": 8, "vision": {"width": 48, "depth": 6}}
    small["loader"] |= {"height": 64, "mean": [0.5, 0.5, 0.5], "max_tokens": 60}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(small))
    return str(tmp_path / "other.yaml")


def test_an_export_of_another_run_is_trimmed_and_judges_pictures(
    export: Path, other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["run", other, "--pretrained", str(export), *FEW, "--json"]
    assert main([*command, "--out", str(out)]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    trims = [f"trim-statement-{target}x" for target in ("1.0", "2.0")]
    evaluated = [f"evaluate-{name}" for name in ("pretrain", *trims)]
    assert stages == dict.fromkeys(["shard", *trims, *evaluated, "survivors"], "done")
    assert {row["task"] for row in read_json(out / "results.json")} == {"retrieval", "statement"}
    for name in trims:
        theirs = [(folder / "tokenizer.json").read_bytes() for folder in (export, out / "stages" / name / "export")]
        assert theirs[0] == theirs[1]
    kept = read_config(RunConfig, [out / "config.yaml"], [])
    assert kept.model == ModelConfig.from_dict(read_json(export / "config.json")["model"])
    assert (kept.loader.height, kept.loader.max_tokens, kept.pretrained) == (32, 24, str(export))
    Image.effect_noise((40, 30), 90).convert("RGB").save(tmp_path / "picture.png")
    asked = ["predict", str(out / "stages" / trims[1] / "export"), "--image", str(tmp_path / "picture.png")]
    assert main([*asked, "--text", "there is a red circle", "--json"]) == 0
    (said,) = json.loads(capsys.readouterr().out)["predictions"]
    assert 0 < said["probability"] < 1 and said["gmacs"] < said["full_gmacs"]

    assert main(["status", str(out)]) == 0
    seen = TrainedRun.of(out, None)
    assert all(map(torch.equal, seen.model().state_dict().values(), load_backbone(export).state_dict().values()))
    assert seen.exposure.held_out is None, "nobody knows what it was trained on"
    capsys.readouterr()
    moved = shutil.copytree(export, tmp_path / "moved")  # the same weights elsewhere
    command[3] = str(moved)
    assert main([*command, "--out", str(tmp_path / "again"), "--take_from", str(out)]) == 0
    assert set(json.loads(capsys.readouterr().out)["stages"].values()) == {"skipped"}


@pytest.mark.parametrize("backbone", ["albef", "blip"])
def test_imported_weights_are_trimmed_with_the_tokenizer_that_is_given(
    backbone: BackboneName, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = export_tensors(small_model(backbone).state_dict(), ALBEF if backbone == "albef" else BLIP).tensors
    torch.save({"model": tensors}, tmp_path / "w.pth")
    heads = ["--vision-heads", "4", "--text-heads", "4"]
    given = ["--pretrained", str(tmp_path / "in"), *FEW[:2], "--trim.targets", "[1.0, 1.5]"]
    assert main(["import", str(tmp_path / "w.pth"), "--kind", backbone, "--out", str(tmp_path / "in"), *heads]) == 0
    assert run(tmp_path / "run", *given, command="trim") == 2
    assert "has no tokenizer, as imported weights have none" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    given += ["--tokenizer.path", str(words), "--loader.max_tokens", "9"]
    assert run(tmp_path / "run", *given, "--json", command="trim") == 0
    assert "pretrain" not in json.loads(capsys.readouterr().out)["stages"]
    described = read_json(tmp_path / "run/stages/trim-statement-1.5x/export/config.json")
    assert described["model"]["backbone"] == backbone and described["loader"]["resize"] == "bicubic"
    assert described["pruning"] is None


def test_what_is_given_is_what_results_depend_on(export: Path, tmp_path: Path) -> None:
    there = shutil.copytree(export, tmp_path / "there")
    first = digests(read("--pretrained", export), tmp_path)
    assert digests(read("--pretrained", there), tmp_path) == first
    assert digests(read("--pretrained", there, "--pretrain.loop.samples=5"), tmp_path) == first
    described = read_json(there / "config.json")
    export_weights(there, {name: 2 * each for name, each in load_backbone(export).state_dict().items()}, described)
    Tokenizer.load(export).save(there)
    second = digests(read("--pretrained", there), tmp_path)
    assert {name for name in first if first[name] == second[name]} == {"shard"}
    own = digests(read(), tmp_path)
    assert own == digests(read_config(RunConfig, [Path(TINY)], []), tmp_path) and "pretrain" in own
    assert not set(own.values()) & set(first.values())
    assert training_stages(read("--pretrained", export)) == [name for name in first if name.startswith("trim-")]


def test_what_the_command_line_says_last_counts(export: Path, tmp_path: Path) -> None:
    (tmp_path / "given.yaml").write_text(f"pretrained: {export}\n")
    files = (TINY, str(tmp_path / "given.yaml"))
    assert read(files=files).pretrained == str(export)
    assert read("--pretrained", "null", files=files).pretrained is None
    assert read("--pretrained=nowhere", f"--pretrained={export}").pretrained == str(export)


def test_imported_meter_keeps_no_pruning_that_nobody_pre_trained_it_with(words: Path, tmp_path: Path) -> None:
    folder = save(tmp_path / "in", "meter")
    config = read("--pretrained", folder, "--tokenizer.path", words, "--loader.max_tokens=9")
    assert config.pretrain.pruning.method == "none" and config.model.backbone == "meter"
    preflight.check(config, tmp_path / "run")


@pytest.mark.parametrize("beside", [False, True], ids=["tokenizer.path", "tokenizer in the folder"])
def test_texts_of_imported_weights_are_read_as_evaluation_reads_them(beside: bool, words: Path, tmp_path: Path) -> None:
    """As the tokenizer's folder says, else as the project does that the weights come from."""
    folder, theirs = save(tmp_path / "in", "meter"), tmp_path / "theirs"
    place = folder if beside else theirs
    place.mkdir(exist_ok=True)
    shutil.copy(words / "tokenizer.json", place)  # transformers' folders say nothing of cleaning
    named = ["--pretrained", folder, "--loader.max_tokens=9", *([] if beside else ["--tokenizer.path", theirs])]
    usual = read(*named).tokenizer
    assert (usual.clean, usual.max_words) == ("none", 50)
    assert read(*named, "--tokenizer.clean=blip").tokenizer.clean == "blip"
    write_json(place / "tokenizer_config.json", {"clean": "blip", "max_words": 11})
    said = read(*named).tokenizer
    assert (said.clean, said.max_words) == ("blip", 11)
    judged = tokenizer_of(folder, None if beside else theirs, read(*named).model)
    assert (judged.cleaning, judged.max_words) == ("blip", 11)


def test_a_file_that_says_nothing_of_a_length_leaves_it(words: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text("loader: {max_tokens: some}\n")
    with pytest.raises(UserError, match=r"loader\.max_tokens"):
        read(
            "--pretrained",
            save(tmp_path / "in", "albef"),
            "--tokenizer.path",
            words,
            files=(TINY, str(tmp_path / "odd.yaml")),
        )


def test_a_cluster_is_sent_the_overrides_that_lie_over_the_folder(tmp_path: Path) -> None:
    given = [
        "--loader.mean=[0.1,0.2,0.3]",
        "--seed",
        "3",
        "--tokenizer.clean",
        "none",
        "--pretrain.pruning.method=none",
    ]
    again = words_of(given, *SAID)
    assert again == ["--loader.mean=[0.1,0.2,0.3]", "--tokenizer.clean=none", "--pretrain.pruning.method=none"]
    config = read_config(RunConfig, [Path(TINY)], [])
    assert shlex.split(entrypoint_of(config, "trim", "python", again=again))[-3:] == again
    assert main(["cluster", "submit", TINY, "--pretrained", "weights", "--out", "/shared/run"]) == 2


def test_all_of_the_time_is_fine_tunings_and_one_worker_is_enough(export: Path, tmp_path: Path) -> None:
    config = read("--pretrained", export, "--budget.minutes=1", "--launcher=ray", "--cluster.workers=1000")
    preflight.check(config, tmp_path)
    assert needed_seconds(config, tmp_path) == 30


def needed_seconds(config: RunConfig, out: Path) -> float | None:
    """Of each of two fine-tunings, one after the other."""
    return _Builder(config, out, LocalBackend(0, 1), "", None)._trim_seconds()


REFUSED = [
    ("nowhere", (), "is no folder; give the export of a pre-training"),
    ("empty", (), "has no model.safetensors; give the export of a pre-training"),
    ("statement", (), "it holds a model that is fine-tuned for statement; give the pre-trained one"),
    ("blip_vqa", (), "it holds a 'blip_vqa' model, but a pre-trained backbone is wanted"),
    ("clip", (), "has no fusion layers, so it can neither judge statements"),
    ("albef", ("--trim.task=captioning",), "albef"),
    ("albef", ("--model.vision.width=64",), "its vision.width is 32, this run's model.vision.width is 64"),
    ("albef", ("--loader.height=64",), "it was trained for 32 x 32 pixels, the loader gives 64 x 32"),
    ("albef", ("--loader.max_tokens=11",), "loader.max_tokens=11 is more than the 10"),
    ("damaged", (), "damaged"),
    ("list", (), "config.json is no JSON object; copy or export the folder again"),
    ("albef", ("--pretrained=[",), "--pretrained=[ cannot be read: give one value"),
]


@pytest.mark.parametrize(("kind", "more", "told"), REFUSED)
def test_what_cannot_begin_a_run_is_refused_in_one_line_before_anything_is_written(
    kind: Any, more: tuple[str, ...], told: str, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / kind
    if kind == "empty":
        folder.mkdir()
    elif kind != "nowhere":
        plain = kind in ("clip", "albef")
        save(folder, kind if plain else "albef", **({} if plain or kind in ("damaged", "list") else {"kind": kind}))
    if kind == "list":
        (folder / "config.json").write_text("[]")
    if kind == "damaged":
        (folder / "model.safetensors").write_bytes(b"none")
    given = ["--pretrained", str(folder), "--tokenizer.path", str(words), "--loader.max_tokens=9", *more]
    assert run(tmp_path / "run", *given, command="trim") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert told in error and error.startswith("trimline: ")
    assert not (tmp_path / "run").exists()


def test_other_pictures_or_words_than_an_export_was_trained_with_are_refused(
    export: Path, words: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"loader.mean=\[0.5, 0.5, 0.5\] is not what pretrained=.* was trained with"):
        read("--pretrained", export, "--loader.mean=[0.5,0.5,0.5]")
    with pytest.raises(UserError, match="it was trained with another tokenizer"):
        read("--pretrained", export, "--tokenizer.path", words)
    with pytest.raises(UserError, match="there is nothing to pre-train"):
        preflight.check(read("--pretrained", export), tmp_path, "pretrain")


def test_the_log_says_what_of_a_recipe_is_not_taken(export: Path, other: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        read("--pretrained", export, files=(other,))
    (line,) = caplog.messages
    assert "says otherwise than the recipe: model.vision.width is 24, not 48" in line


def test_a_comparison_tells_the_speed_of_the_first_fine_tuning(tmp_path: Path) -> None:
    asked = CompareConfig(base=(TINY,), out=str(tmp_path), variants={"all": {}}, reference="all", seeds=(0,))
    trial = tmp_path / trials(asked)[0].name
    stage = trial / "stages/trim-statement-1.0x"
    stage.mkdir(parents=True)
    write_json(trial / "run.json", {"stages": {"shard": [], "trim-statement-1.0x": ["shard"]}})
    write_json(trial / "results.json", [])
    write_json(stage / "status.json", {"outputs": {"samples": 32, "seconds": 2.0, "steps": 4, "peak_bytes": 5}})
    (stage / "metrics.jsonl").write_text("")
    (found,) = gathered(asked, {})["runs"]
    assert (found["samples"], found["step_ms"], found["peak_bytes"]) == (32, 500.0, 5)


def test_a_shipped_recipe_is_complete_in_itself_with_or_without_a_model(export: Path, tmp_path: Path) -> None:
    config = read("--trim.targets=[1.0,2.0]", files=(str(ROOT / SHAPES),))
    assert config.trim.targets == (1.0, 2.0) and config.pretrained is None
    given = read("--pretrained", export, "--pretrain.pruning.method=none", files=(str(ROOT / SHAPES),))
    assert given.loader.max_tokens == 24, "no more than the model has room for"
    preflight.check(given, tmp_path / "run")
