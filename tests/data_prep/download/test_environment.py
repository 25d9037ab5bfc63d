import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.download.environment import VARIABLE, default_folder, ensure_environment, quiet
from data_prep.errors import UserError


def test_it_lies_in_the_cache_unless_somebody_says_otherwise(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    version = f"py{sys.version_info.major}.{sys.version_info.minor}"
    assert default_folder().parent == tmp_path / "trimline"
    assert default_folder().name.startswith(f"img2dataset-{version}-")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder().parent == Path("~/.cache/trimline").expanduser()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mine"))
    assert default_folder() == tmp_path / "mine"


def test_a_folder_of_something_else_is_never_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is no Python environment; give an empty or a new folder with --tool-env"):
        ensure_environment(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_environment_without_img2dataset_is_told_of(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    with pytest.raises(UserError, match=r"has no img2dataset that works .*No module named"):
        ensure_environment(tmp_path)


def test_a_folder_that_cannot_be_made_is_told_of(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot make .*; give another folder, --tool-env"):
        ensure_environment(tmp_path / "file" / "env")


def test_what_our_own_python_is_told_does_not_reach_it(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("VIRTUAL_ENV", "/elsewhere")
    assert not {"PYTHONPATH", "VIRTUAL_ENV"} & set(quiet())
    assert quiet()["NO_ALBUMENTATIONS_UPDATE"] == "1"


@pytest.mark.slow
def test_where_it_cannot_be_installed_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # no uv
    with pytest.raises(UserError, match=r"could not be installed: .*img2dataset"):
        ensure_environment(tmp_path / "env")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["uv", "pip"])
def test_it_is_made_once_by_uv_or_pip_and_holds_the_pinned_versions(way, tmp_path, monkeypatch):
    own_bin = Path(sys.executable).parent
    if way == "uv":
        if not (own_bin / "uv").exists():
            pytest.skip("there is no uv beside this Python")
        monkeypatch.setenv("PATH", f"{own_bin}:/usr/bin:/bin")
    else:
        monkeypatch.setenv("PATH", "/usr/bin:/bin")
    python = ensure_environment(tmp_path / "env")
    code = "import img2dataset, importlib.metadata as m; print(m.version('img2dataset'))"
    said = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, env=quiet(), check=True)
    assert said.stdout.strip() == "1.47.0"
    assert [path.name for path in tmp_path.iterdir()] == ["env"]
    before = python.lstat().st_mtime_ns
    assert ensure_environment(tmp_path / "env") == python
    assert python.lstat().st_mtime_ns == before
