"""A mix of shard folders: the recipe that is shipped, and a little one that trains."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.cli import main
from launch.config import RunConfig
from launch.reading import read_config
from launch.recipes import find_recipe, recipes

SOURCES = {"coco": 40, "vg": 80, "sbu": 120, "cc3m": 160}
TINY = str(Path(__file__).with_name("tiny.yaml"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four little data sets laid out as configs/data/4m.yaml wants them."""
    root = tmp_path_factory.mktemp("corpus")
    for seed, (name, size) in enumerate(SOURCES.items()):
        sizes = json.dumps({"train": size, "val": 16 if name == "coco" else 0, "test": 0, "unseen": 0})
        words = ["--sizes", sizes, "--image_size", "32", "--shard_samples", "30", "--seed", str(seed)]
        assert main(["shard", "shapes", "--out", str(root / name), *words, "--workers", "1"]) == 0
    return root


@pytest.mark.parametrize("recipe", [name for name in recipes() if name.startswith("configs/pretrain/")])
def test_the_mix_lies_over_every_recipe_of_pretraining(recipe: str) -> None:
    model = f"configs/models/{Path(recipe).stem.partition('_')[0]}_base.yaml"
    config = read_config(RunConfig, [find_recipe(name) for name in (model, recipe, "configs/data/4m.yaml")], [])
    assert set(config.pretrain.splits) == {f"{name}/train" for name in SOURCES}
    assert config.pretrain.mix == "epochs"
    assert config.evaluate.retrieval_splits == ("coco/val",)
    assert config.data.name == "shards"


@pytest.mark.parametrize(
    ("more", "shares"),
    [
        ([], {"coco": 0.1, "vg": 0.2, "sbu": 0.3, "cc3m": 0.4}),
        (
            ["--pretrain.mix", "weights", "--pretrain.splits", '{"coco/train": 2, "cc3m/train": 6}'],
            {"coco": 0.25, "cc3m": 0.75},
        ),
    ],
)
def test_a_mix_trains_from_the_folders_where_they_lie(
    corpus: Path, tmp_path: Path, more: list[str], shares: dict[str, float]
) -> None:
    run = tmp_path / "run"
    plain = ["--data.sizes", "{}", "--trim.targets", "[]", "--evaluate.statement_splits", "[]"]
    words = ["--data.root", str(corpus), "--out", str(run), *plain, "--pretrain.loop.samples", "80", *more]
    assert main(["pretrain", TINY, "configs/data/4m.yaml", *words]) == 0
    mix: dict[str, Any] = json.loads((run / "stages/pretrain/result.json").read_text())["mix"]
    assert {name.removesuffix("/train"): of["share"] for name, of in mix.items()} == shares
    assert {name: of["units"] for name, of in mix.items()} == {f"{name}/train": SOURCES[name] for name in shares}
    for name in SOURCES:
        assert (run / "data" / name / "train").resolve() == corpus / name / "train"
    copied = [path for path in run.rglob("*.tar") if not any(parent.is_symlink() for parent in path.parents)]
    assert copied == []


def test_a_split_that_is_gone_leaves_the_run_folder_and_the_users_shards_stay(corpus: Path, tmp_path: Path) -> None:
    root, run = tmp_path / "root", tmp_path / "run"
    root.mkdir()
    (root / "train").symlink_to(corpus / "coco" / "train")
    words = ["--data.sizes", "{}", "--trim.targets", "[]", "--evaluate.statement_splits", "[]"]
    words += ["--evaluate.retrieval_splits", "[train]", "--data.name", "shards", "--pretrain.loop.samples", "16"]
    assert main(["pretrain", TINY, "--data.root", str(root), "--out", str(run), *words]) == 0
    (root / "train").unlink()
    (root / "train").mkdir()
    (root / "train" / "coco").symlink_to(corpus / "coco" / "train")
    words[words.index("[train]")] = "[train/coco]"
    words += ["--pretrain.splits", '{"train/coco": 1}']
    assert main(["pretrain", TINY, "--data.root", str(root), "--out", str(run), *words]) == 0
    assert sorted(path.name for path in (corpus / "coco" / "train").iterdir()) == [
        "00000.tar", "00001.tar", "index.json", "samples.npy",
    ]  # fmt: skip
    assert (run / "data" / "train" / "coco").resolve() == corpus / "coco" / "train"


def test_the_recipe_names_what_it_wants(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--data.root",
        str(corpus / "vg"),
        "--data.sizes",
        "{}",
        "--trim.targets",
        "[]",
        "--out",
        str(tmp_path / "r"),
    ]
    assert main(["pretrain", TINY, "configs/data/4m.yaml", *words]) == 2
    assert "coco/train" in capsys.readouterr().err
    assert yaml.safe_load(find_recipe("data/4m").read_text())["data"] == {"name": "shards"}
