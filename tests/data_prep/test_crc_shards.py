"""Shards without SHA-256: the checksums of the samples find, and keep, what the other ones would."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.clean import CleanConfig
from data_prep.faults import counts
from data_prep.index import INDEX, SAMPLES, load_index
from data_prep.job import Layout
from data_prep.make_index import index_folder
from data_prep.records import Record, Skipped
from data_prep.repair import Repair, repair_folder
from data_prep.sources import SourceConfig, prepare, writing_identity
from data_prep.verify import verify_folder
from data_prep.writer import write_split
from pipeline.data.shards import ShardFolder
from tests.data_prep.samples import Plain, contents, picture
from tests.data_prep.test_sample_checksums import replace_bytes

TAR = "00001.tar"


def made(folder: Path, split: Plain | None = None, clean: CleanConfig | None = None, **layout: Any) -> Path:
    wanted = Layout(shard_samples=10, checksums="crc32", **layout)
    write_split(split or Plain(), folder, name="plain", fingerprint="f", layout=wanted, clean=clean, workers=1)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made(tmp_path / "train")


@dataclasses.dataclass(frozen=True)
class Labelled(Plain):
    """Samples that take the same bytes whatever their label, true or null."""

    label: bool | None = True

    def records(self, start: int, stop: int) -> Iterator[Record | Skipped]:
        for record in super().records(start, stop):
            assert isinstance(record, Record)
            yield dataclasses.replace(record, statements=({"text": "this is it", "label": self.label},))


def kinds(folder: Path) -> dict[Any, int]:
    return dict(counts(verify_folder(folder, workers=1)))


def lost(repair: Repair) -> list[str | None]:
    return [one.key for one in repair.named]


def test_they_have_the_rows_checksum_in_the_index_and_are_whole(folder: Path) -> None:
    index, rows = load_index(folder)
    assert [set(shard) & {"sha256", "samples_sha256"} for shard in index["shardlist"]] == [{"samples_sha256"}] * 3
    assert index["shardlist"][1]["samples_sha256"] == hashlib.sha256(rows[10:20].tobytes()).hexdigest()
    assert b'"sha256"' not in (folder / TAR).read_bytes()
    assert kinds(folder) == {}
    assert repair_folder(folder, workers=1) == Repair()
    shards = ShardFolder(folder)
    assert shards.read(12).key == "k0012"
    shards.close()


def test_other_pictures_of_the_same_size_are_other_data(tmp_path: Path) -> None:
    """Order is a function of the index's digest, which must not be that of shards with the same sizes."""
    digests = set()
    for label in (True, None):
        split = Labelled(label=label)
        folder = made(tmp_path / str(label), split)
        assert (folder / TAR).stat().st_size == 31744
        digests.add(ShardFolder(folder).digest)
    assert len(digests) == 2


@pytest.mark.parametrize(("old", "new"), [(b'"number 12"', b'"numbe2 12"'), (picture(12), picture(12)[:-1] + b"x")])
def test_a_changed_sample_is_found_and_it_alone_is_lost(folder: Path, old: bytes, new: bytes) -> None:
    replace_bytes(folder / TAR, old, new)
    assert kinds(folder)["checksum"] == 2  # of the shard and of the sample
    repair = repair_folder(folder, workers=1)
    assert (lost(repair), repair.kept, repair.rewritten) == (["k0012"], 24, [TAR])
    assert kinds(folder) == {}
    assert "sha256" in json.loads((folder / INDEX).read_text())["shardlist"][1]


def test_a_flipped_bit_of_the_rows_loses_no_sample(folder: Path) -> None:
    before = (folder / TAR).read_bytes()
    rows = np.load(folder / SAMPLES)
    rows[13, -1] ^= 1
    np.save(folder / SAMPLES, rows)
    assert kinds(folder) == {"samples.npy": 1}
    assert lost(repair_folder(folder, workers=1)) == []
    assert kinds(folder) == {} and (folder / TAR).read_bytes() == before


def test_a_flipped_bit_of_the_index_loses_no_sample(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["shardlist"][1]["samples_sha256"] = "0" * 64
    (folder / INDEX).write_text(json.dumps(index))
    assert kinds(folder) == {"checksum": 1}
    repair = repair_folder(folder, workers=1)
    assert (lost(repair), repair.kept) == ([], 25)
    assert kinds(folder) == {}


def test_a_shard_under_another_name_is_known_by_its_samples(folder: Path) -> None:
    (folder / TAR).rename(folder / "other.tar")
    repair = repair_folder(folder, workers=1)
    assert repair.renamed == {"other.tar": TAR} and repair.kept == 25
    assert kinds(folder) == {}


def test_a_cut_shard_loses_what_was_cut_off(folder: Path) -> None:
    path = folder / TAR
    path.write_bytes(path.read_bytes()[: load_index(folder)[1][14][1]])
    assert {"count", "truncated tar"} <= set(kinds(folder))
    assert repair_folder(folder, workers=1).kept == 20
    assert kinds(folder) == {}


def test_indexing_gives_them_the_other_checksum(folder: Path) -> None:
    (folder / INDEX).unlink()
    index_folder(folder, workers=1)
    assert all("sha256" in shard for shard in load_index(folder)[0]["shardlist"])
    assert kinds(folder) == {}


def test_lists_of_exclusions_still_name_pictures_by_sha256(tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(hashlib.sha256(picture(3)).hexdigest() + "\n")
    folder = made(tmp_path / "train", clean=CleanConfig(exclude=[str(listed)]))
    assert load_index(folder)[0]["account"]["skipped"] == {"excluded by checksum": 1}
    smaller = made(tmp_path / "small", Plain(sides=(20,)), max_side=10)
    shards = ShardFolder(smaller)
    text = shards.read(0).fields
    shards.close()
    assert "sha256" not in text and text["originals"]["image"]["sha256"] == hashlib.sha256(picture(0, 20)).hexdigest()


def test_the_choice_reaches_the_writer_and_older_shards_stay_finished(tmp_path: Path) -> None:
    config = SourceConfig(sizes={"train": 20, "val": 0, "test": 0, "unseen": 0})
    fast = SourceConfig(sizes=config.sizes, checksums="crc32")
    assert "checksums" not in writing_identity(config) and writing_identity(fast)["checksums"] == "crc32"
    prepare(config, tmp_path / "out", workers=1)
    assert "sha256" in load_index(tmp_path / "out/train")[0]["shardlist"][0]
    prepare(fast, tmp_path / "out", workers=1)
    assert "samples_sha256" in load_index(tmp_path / "out/train")[0]["shardlist"][0]
    prepare(fast, tmp_path / "again", workers=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "again")
