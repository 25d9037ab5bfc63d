"""What models and splits are called: short, and different where they differ."""

from pathlib import Path

import pytest

from launch.model_names import model_name, names_apart, split_in_file, split_name


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        ("a/demo", "b/other", ["demo", "other"]),
        ("a/demo", "b/demo", ["a/demo", "b/demo"]),
        ("runs/demo", "runs/demo/stages/pretrain/export", ["demo", "demo/pretrain"]),
        ("a/demo/stages/pretrain/export", "b/demo/stages/pretrain/export", ["a/demo/pretrain", "b/demo/pretrain"]),
        ("weights/one", "weights/one", ["one", "one"]),
    ],
)
def test_models_are_told_apart(first: str, second: str, names: list[str]) -> None:
    assert names_apart([Path(first), Path(second)]) == names


def test_a_file_is_named_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "model.safetensors").touch()
    assert model_name(tmp_path / "vit" / "model.safetensors") == "vit/model.safetensors"


def test_splits_are_named_without_their_paths() -> None:
    assert (split_name("test"), split_name("/far/data/test")) == ("test", "data/test")
    assert (split_in_file("test"), split_in_file("/far/data/test")) == ("test", "data-test")
