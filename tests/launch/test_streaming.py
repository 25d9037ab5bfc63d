"""A run whose shards are behind a URL is the run whose shards are in a folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from pipeline.data.shards import ShardFolder
from pipeline.progress import read_metrics
from tests.data_prep.server import Server, serving

TINY = str(Path(__file__).with_name("tiny.yaml"))
PLAIN = ["--data.sizes", "{}", "--trim.targets", "[]", "--evaluate.statement_splits", "[]", "--data.name", "shards"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    sizes = json.dumps({"train": 60, "val": 0, "test": 16, "unseen": 0})
    words = ["--sizes", sizes, "--image_size", "32", "--shard_samples", "20"]
    assert main(["shard", "shapes", "--out", str(root), *words, "--workers", "1"]) == 0
    shards = ShardFolder(root / "train")
    data = bytearray((root / "train" / "00001.tar").read_bytes())
    begin = int(shards._rows[23, 0])
    data[begin + 512 : begin + 600] = bytes(88)  # a picture that does not decode
    (root / "train" / "00001.tar").write_bytes(data)
    return root


@pytest.fixture
def server(corpus: Path):
    with serving(corpus) as running:
        yield running


def pretrain(out: Path, *words: str) -> dict[str, Any]:
    assert main(["pretrain", TINY, "--out", str(out), *PLAIN, *words, "--pretrain.loop.samples", "120"]) == 0
    result: dict[str, Any] = json.loads((out / "stages/pretrain/result.json").read_text())
    return result


def losses(out: Path) -> list[dict[str, Any]]:
    lines = read_metrics(out / "stages/pretrain/metrics.jsonl")
    # How fast, from where and in how much memory: not what was learned.
    how = ("second", "flops", "data_wait", "_ms", "cache_hits", "fetch", "memory")
    return [{key: value for key, value in line.items() if not any(part in key for part in how)} for line in lines]


def test_a_run_from_a_url_equals_one_from_a_folder(corpus: Path, server: Server, tmp_path: Path) -> None:
    faults = iter(["drop", "500", "vanish"])
    server.fault = lambda number, name: next(faults, None) if name.endswith(".tar") else None
    local = pretrain(tmp_path / "local", "--data.root", str(corpus))
    remote = ["--data.root", server.url, "--data.splits", "[train, test]", "--loader.cache_dir", str(tmp_path / "c")]
    result = pretrain(tmp_path / "remote", *remote)
    assert losses(tmp_path / "remote") == losses(tmp_path / "local") != []
    assert result["mix"] == local["mix"]
    assert sorted(path.name for path in (tmp_path / "remote/data/train").iterdir()) == [
        "index.json", "remote.json", "samples.npy",
    ]  # fmt: skip
    # Bad samples are counted by reason and named once, however often they came up.
    assert result["bad_samples"] == local["bad_samples"] == {"image cannot be decoded": 1}
    (line,) = (tmp_path / "remote/stages/pretrain/quarantine/rank-0.jsonl").read_text().splitlines()
    assert (json.loads(line)["shard"], json.loads(line)["number"]) == ("00001.tar", 3)


def test_another_way_of_reading_is_no_reason_to_train_again(server: Server, tmp_path: Path) -> None:
    words = ["--data.root", server.url, "--data.splits", "[train, test]"]
    pretrain(tmp_path / "run", *words)
    before = (tmp_path / "run/stages/pretrain/result.json").stat().st_mtime_ns
    pretrain(tmp_path / "run", *words, "--loader.cache_dir", str(tmp_path / "c"), "--loader.read_ahead_mib", "1")
    assert (tmp_path / "run/stages/pretrain/result.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data.root", "URL"], "cannot be listed; name its folders with an index"),
        (["--data.root", "URL", "--data.splits", "[train, nothing]"], "nothing/index.json: the server answers 404"),
        (["--data.root", "pipe:cat index.json"], "is a command, which is never run"),
        (["--data.root", "ftp://me:secret@host/x"], "data.root=ftp://***@host/x has a password or a token in its URL"),
        (["--data.root", "https://host/x?token=secret"], "data.root=https://host/x?token=*** has a password"),
        (["--data.root", "URL", "--data.splits", "[../train]"], "no folder inside of data.root"),
    ],
)
def test_what_cannot_be_read_is_said_before_anything_starts(server, tmp_path, capsys, words, said: str) -> None:
    given = [server.url if word == "URL" else word for word in words]
    assert main(["pretrain", TINY, "--out", str(tmp_path / "run"), *PLAIN, *given]) == 2
    told = capsys.readouterr()
    assert said in told.err and "secret" not in told.err + told.out
    assert not (tmp_path / "run").exists()
