"""`trimline bench loader` at sizes of a second; the peers' environments are made in the slow test only."""

import json
import os
import signal
import sys
import tarfile
from pathlib import Path

import psutil
import pytest

from launch.bench_loader import Contender, loader_bench_text
from launch.bench_loader_peers import REQUIREMENTS, LoaderSpec
from launch.cli import main
from tests.data_prep.samples import picture

SHORT = ["--samples", "48", "--batch", "4", "--workers", "1", "--rounds", "2", "--warmup", "0", "--size", "16"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A tar of five pictures, a text and a broken picture."""
    (tmp_path / "in").mkdir()
    for number in range(5):
        (tmp_path / f"in/{number}.jpg").write_bytes(picture(number, 32, ".jpg"))
    (tmp_path / "in/readme.txt").write_text("no picture")
    (tmp_path / "in/broken.jpg").write_text("no picture either")
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        tar.add(tmp_path / "in", "in")
    return tmp_path / "in.tar"


def rows_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[dict, dict]:
    assert main(["bench", "loader", *words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    return answer, {row["name"]: row for row in answer["rows"]}


def test_our_loader_is_measured_against_the_bare_decoder_and_webdataset(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    words = [*SHORT, "--images", str(pictures), "--peers", "webdataset", "--out", str(tmp_path / "out")]
    answer, rows = rows_of(words, capsys)
    assert (answer["reference"], answer["pictures"], answer["samples"], answer["workers"]) == ("decoder", 5, 48, 1)
    assert list(rows) == ["decoder", "trimline", "webdataset"]
    assert rows["decoder"]["ratio"] == 1.0 and rows["decoder"]["first_batch_seconds"] is None
    for name in ("trimline", "webdataset"):
        row = rows[name]
        assert row["unit"] == "samples/s" and row["value"] > 0 and row["cpu_us"] > 0
        assert row["ratio_min"] <= row["ratio_q1"] <= row["ratio"] <= row["ratio_q3"]
        assert row["first_batch_seconds"] > 0
    assert rows["trimline"]["parts_us"].keys() == {"read", "decode", "text"} and rows["webdataset"]["parts_us"] == {}
    assert all(value > 0 for value in rows["trimline"]["parts_us"].values())
    assert {"commit", "device", "device_name", "includes", "seed", "picture_bytes"} <= set(answer)
    assert answer["left_out"] == {} and not list((tmp_path / "out").iterdir())
    assert loader_bench_text(answer).splitlines()[1].split()[:3] == ["loader", "samples/s", "ratio"]


def test_pictures_are_made_where_none_are_given_and_peers_without_an_environment_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody is there
    monkeypatch.setenv("PIP_RETRIES", "0")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    words = [*SHORT, "--image-size", "16", "--peers", "litdata", "--peer-env", str(tmp_path / "env")]
    answer, rows = rows_of(words, capsys)
    assert list(rows) == ["decoder", "trimline"]
    assert answer["pictures"] == 64
    assert "litdata" in answer["left_out"]["litdata"]
    assert not list((tmp_path / "env").glob("*/complete"))


@pytest.mark.parametrize("killed", [False, True])
def test_the_bare_decoders_processes_end_with_theirs(tmp_path: Path, killed: bool) -> None:
    splits = json.dumps({"train": 4, "val": 0, "test": 0, "unseen": 0})
    words = ["--sizes", splits, "--image_size", "32", "--workers", "1"]
    assert main(["shard", "shapes", "--out", str(tmp_path / "data"), *words]) == 0
    root, sizes = str(tmp_path / "data"), {"size": 16, "max_tokens": 8, "batch": 2, "workers": 2, "samples": 4}
    spec = LoaderSpec(root=root, scratch=str(tmp_path), tokenizer="", seed=0, **sizes)
    contender = Contender("decoder", Path(sys.executable), spec, tmp_path / "errors")
    contender.answer()
    decoders = psutil.Process(contender._process.pid).children()
    assert len(decoders) == 2
    if killed:
        os.kill(contender._process.pid, signal.SIGKILL)
    contender.close()
    assert not psutil.wait_procs(decoders, timeout=10)[1]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_peers_load_the_same_samples(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer, rows = rows_of([*SHORT, "--images", str(pictures), "--rounds", "1"], capsys)
    if answer["left_out"]:
        pytest.skip(f"left out: {answer['left_out']}")
    assert set(rows) == {"decoder", "trimline", *REQUIREMENTS}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--images", "nowhere"], "bench.images nowhere"),
        (["--samples", "20"], "bench.samples=20 must be at least 48"),
        (["--workers", "0"], "bench.workers=0"),
        (["--out", "nowhere"], "bench.out=nowhere"),
        (["--rounds", "0"], "bench.rounds=0"),
        (["--peers", "webdataset,mosaic"], "bench.peers=mosaic"),
    ],
)
def test_a_users_mistake_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "loader", *SHORT, "--peers", "none", *words]) == 2
    told = capsys.readouterr().err.strip()
    assert said in told
    assert len(told.splitlines()) == 1
