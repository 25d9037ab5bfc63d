"""`trimline bench shard` at sizes of a second."""

import json
from pathlib import Path

import pytest

from launch.bench_shard import shard_bench_text
from launch.cli import main
from tests.data_prep.samples import picture

OURS = ["trimline", "trimline_sha256", "trimline_decoded"]
NAMES = ["webdataset", "webdataset_checksums", *OURS, "crc32", "checksums", "disk", "decoder"]


def test_the_bench_compares_all_contenders_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    for number in range(5):
        (tmp_path / f"in/{number}.jpg").write_bytes(picture(number, 32, ".jpg"))
    (tmp_path / "in/readme.txt").write_text("no picture")
    words = ["--images", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--samples", "60"]
    words += ["--shard-samples", "20", "--rounds", "2", "--warmup", "1", "--workers", "1", "--json"]
    assert main(["bench", "shard", *words]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["reference"] == "webdataset"
    assert (answer["pictures"], answer["samples"], answer["workers"], answer["rounds"]) == (5, 60, 1, 2)
    rows = {row["name"]: row for row in answer["rows"]}
    assert list(rows) == NAMES
    assert rows["webdataset"]["ratio"] == 1.0
    assert rows["decoder"]["of_decoder"] == 1.0
    assert all(row["value"] > 0 and row["unit"] == "samples/s" for row in rows.values())
    assert all(row["of_limit"] > 0 and row["of_decoder"] > 0 for row in rows.values())
    assert {"commit", "device", "device_name", "includes", "seed", "picture_bytes"} <= set(answer)
    assert not list((tmp_path / "out").iterdir())
    assert shard_bench_text(answer).splitlines()[1].startswith("contender")


def test_pictures_are_made_where_none_are_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--image-size", "16", "--samples", "10", "--rounds", "1", "--warmup", "0", "--workers", "1"]
    assert main(["bench", "shard", *words, "--out", str(tmp_path)]) == 0
    assert "10 pictures of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--images", "nowhere"], "bench.images=nowhere"),
        (["--samples", "0"], "bench.samples=0"),
        (["--workers", "0"], "bench.workers=0"),
        (["--out", "nowhere"], "bench.out=nowhere"),
        (["--rounds", "0"], "bench.rounds=0"),
    ],
)
def test_a_users_mistake_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "shard", *words]) == 2
    told = capsys.readouterr().err.strip()
    assert said in told
    assert len(told.splitlines()) == 1
