"""What is refused before anything is asked of the network; the downloads themselves are in tests/launch."""

import fcntl
import json
from pathlib import Path

import pytest

from data_prep.download.config import DownloadConfig
from data_prep.download.job import _name, _quoted, download
from data_prep.errors import UserError


def config(tmp_path: Path, text: str = "one\thttp://a.org/1.jpg\n", **more: object) -> DownloadConfig:
    (tmp_path / "list.tsv").write_text(text)
    # An environment that cannot be made: a test that gets so far fails.
    (tmp_path / "file").touch()
    given = {"list": str(tmp_path / "list.tsv"), "out": str(tmp_path / "out"), "tool_env": str(tmp_path / "file" / "x")}
    return DownloadConfig(**{**given, **more})


def refused(config: DownloadConfig) -> str:
    with pytest.raises(UserError) as caught:
        download(config, lambda *_: None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_list_comes_before_any_folder(tmp_path):
    assert "is no file" in refused(config(tmp_path, list=str(tmp_path / "none.tsv")))
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "out" / "train").mkdir(parents=True)
    (tmp_path / "out" / "train" / "thesis.txt").touch()
    assert "holds something else; give another --out or --split" in refused(config(tmp_path))


def test_what_is_finished_is_not_done_again_but_another_list_is_refused(tmp_path):
    wanted = config(tmp_path)
    assert "--tool-env" in refused(wanted)  # so far it got
    identity = json.loads((tmp_path / "out" / ".download-train" / "request.json").read_text())
    assert set(identity["lists"]) == {"list.tsv"}
    assert "holds the unfinished download of another list" in refused(config(tmp_path, "two\thttp://a.org/2.jpg\n"))
    assert "--tool-env" in refused(config(tmp_path, max_side=500))  # the same list, other shards


def test_two_downloads_into_one_folder_are_refused(tmp_path):
    state = tmp_path / "out" / ".download-train"
    state.mkdir(parents=True)
    with open(state / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another download is writing to" in refused(config(tmp_path))
    assert "--tool-env" in refused(config(tmp_path))


def test_a_list_without_a_line_that_can_be_asked_for_is_refused(tmp_path):
    said = refused(config(tmp_path, "one\tfile:///etc/passwd\n\thttp://a.org/1.jpg\n", format="cc3m"))
    assert "no line asks for an http or https URL with a caption" in said
    assert "'no caption': 1" in said


def test_a_folder_that_cannot_be_made_is_told_of(tmp_path):
    assert "cannot make the folder" in refused(config(tmp_path, out=str(tmp_path / "file" / "out")))


def test_the_name_of_the_data_is_the_lists_unless_it_is_given(tmp_path):
    assert _name(config(tmp_path, list="a/Train GCC (1).tsv.gz")) == "Train_GCC__1_"
    assert _name(config(tmp_path, name="cc3m")) == "cc3m"


def test_urls_are_quoted_as_browsers_do():
    assert _quoted("http://a.org/a b/é.jpg?x=ü&y=%20#z") == "http://a.org/a%20b/%C3%A9.jpg?x=%C3%BC&y=%20#z"
    plain = "https://a.org:8080/~b/c,d;e=f/(1)!.jpg?x[0]=1&y=a+b@c$"
    assert _quoted(plain) == plain
