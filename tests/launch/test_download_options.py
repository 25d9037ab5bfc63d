"""The words of `trimline download`; what it does with them is in test_download.py."""

import argparse
import dataclasses
import json

import pytest

from data_prep.download.config import DownloadConfig
from launch.cli import main
from launch.download import _Display, add_download_options


def test_every_setting_can_be_given_and_has_the_default_that_it_documents():
    parser = argparse.ArgumentParser()
    add_download_options(parser)
    given = vars(parser.parse_args(["list.tsv", "--out", "data"]))
    assert DownloadConfig(**given) == DownloadConfig(list="list.tsv", out="data")
    assert given.keys() == {field.name for field in dataclasses.fields(DownloadConfig)}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--threads", "0"], "--threads 0 must be from 1 to 4096"),
        (["--out", "s3://bucket/cc3m"], "a folder on this machine is wanted"),
        (["--format", "laion"], "--format laion is not known"),
        (["--url-column", "link"], "cc3m has none"),
        (["--split", "a/b"], "--split 'a/b' must be"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(words, said, tmp_path, capsys):
    (tmp_path / "list.tsv").write_text("a\thttp://a.org/1.jpg\n")
    assert main(["download", str(tmp_path / "list.tsv"), "--out", str(tmp_path / "out"), "--json", *words]) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert len(err.splitlines()) == 1
    assert said in json.loads(out)["error"]
    assert [path.name for path in tmp_path.iterdir()] == ["list.tsv"]


def test_a_word_where_a_number_is_wanted_is_one_line(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["download", "list.tsv", "--out", "x", "--retries", "many"])
    assert caught.value.code == 2
    assert "argument --retries: invalid int value: 'many'" in capsys.readouterr().err


def test_without_a_terminal_a_line_begins_each_part_of_the_work(capsys):
    with _Display() as display:
        display.show("reading the list", 1000, 0, "")
        display.show("download", 0, 5000, "")
        display.show("download", 10, 5000, "50.0% answered")  # within the same quarter of a minute
        display.show("try 2", 10, 20, "50.0% answered")
    said = capsys.readouterr().err.splitlines()
    assert said == ["reading the list: 1,000 lines", "download: 0 of 5,000", "try 2: 10 of 20, 50.0% answered"]
