import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.files import atomic_dir, read_json, remove_folder, write_atomic, write_json
from data_prep.index import indexed_splits


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_written_as_utf8(tmp_path):
    write_atomic(tmp_path / "a", "ä")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa4"


def test_broken_json_is_the_users_error_and_a_missing_file_is_not(tmp_path):
    (tmp_path / "a").write_text("{")
    with pytest.raises(UserError, match="valid JSON"):
        read_json(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "b")


def test_a_folder_takes_the_place_of_the_old_one_only_at_success(tmp_path):
    final = tmp_path / "deep/final"
    with atomic_dir(final) as folder:
        (folder / "x").write_text("1")
    with pytest.raises(RuntimeError), atomic_dir(final) as folder:
        (folder / "y").write_text("2")
        raise RuntimeError
    assert [path.name for path in final.iterdir()] == ["x"]
    with atomic_dir(final) as folder:
        (folder / "z").write_text("3")
    assert [path.name for path in final.iterdir()] == ["z"]
    assert list(final.parent.iterdir()) == [final]


def test_data_prep_imports_neither_torch_nor_ray():
    script = """
import importlib, pkgutil, sys, data_prep
for module in pkgutil.walk_packages(data_prep.__path__, "data_prep."):
    importlib.import_module(module.name)
print(sorted({"torch", "ray", "deepspeed", "transformers"} & set(sys.modules)))
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_of_a_link_only_the_link_is_removed_and_what_a_killed_removal_left_goes_too(tmp_path: Path) -> None:
    kept, link, left = tmp_path / "kept", tmp_path / "link", tmp_path / ".link.removed"
    for folder in (kept, left):
        folder.mkdir()
        (folder / "x").write_text("1")
    for target in (kept, tmp_path / "gone"):
        link.symlink_to(target)
        remove_folder(link)
        assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (kept / "x").exists()


def test_what_is_being_removed_or_written_is_no_split(tmp_path: Path) -> None:
    for name in ("b/train", "a", ".a.removed", "b/.train.removed", ".b.taken/train"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "index.json").write_text("{}")
    assert indexed_splits(tmp_path) == [tmp_path / "a", tmp_path / "b/train"]
