import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.download.tool import finished_shards


def shard(raw: Path, number: int, name: str = "k") -> None:
    with tarfile.open(raw / f"{number:05d}.tar", "w") as tar:
        info = tarfile.TarInfo(f"{name}.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    pq.write_table(pa.table({"row": [1]}), raw / f"{number:05d}.parquet")
    (raw / f"{number:05d}_stats.json").write_text(json.dumps({"count": 1, "successes": 1}))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


BREAKS = {
    "statistics cut off": lambda raw: cut(raw / "00001_stats.json", 5),
    "statistics empty": lambda raw: cut(raw / "00001_stats.json", 0),
    "statistics of something else": lambda raw: (raw / "00001_stats.json").write_text("[]"),
    "tar cut off": lambda raw: cut(raw / "00001.tar", 900),
    "tar empty": lambda raw: cut(raw / "00001.tar", 0),
    "tar missing": lambda raw: (raw / "00001.tar").unlink(),
    "table cut off": lambda raw: cut(raw / "00001.parquet", 50),
    "table empty": lambda raw: cut(raw / "00001.parquet", 0),
    "table missing": lambda raw: (raw / "00001.parquet").unlink(),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_shard_is_finished_only_where_all_its_files_are_whole(name, tmp_path):
    for number in (0, 1):
        shard(tmp_path, number)
    (tmp_path / "00002.tar").touch()  # being written
    assert finished_shards(tmp_path).keys() == {0, 1}
    BREAKS[name](tmp_path)
    assert finished_shards(tmp_path).keys() == {0}
    assert not (tmp_path / "00001_stats.json").exists()  # so that img2dataset fetches it again
    assert (tmp_path / "00000_stats.json").exists()
