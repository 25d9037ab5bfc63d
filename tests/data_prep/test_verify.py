import io
import json
import os
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from data_prep.errors import UserError
from data_prep.index import load_index
from data_prep.job import Layout
from data_prep.make_index import index_folder
from data_prep.records import Record
from data_prep.tars import BadTar, list_members, why_unsafe
from data_prep.verify import verify_folder
from data_prep.writer import write_split
from tests.data_prep.samples import Plain, picture


@pytest.fixture
def folder(tmp_path) -> Path:
    write_split(Plain(), tmp_path, name="plain", fingerprint="f", layout=Layout(shard_samples=10), workers=1)
    return tmp_path


def make_tar(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]], **info) -> None:
    pairs = members.items() if isinstance(members, dict) else members
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in pairs:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for field, value in info.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(data))


def what(faults) -> str:
    return " | ".join(map(str, faults))


def test_a_good_folder_has_no_faults(folder):
    assert verify_folder(folder) == []


@pytest.mark.parametrize("cut", [1, 600, 1024, 1025, 5000])
def test_a_truncated_shard_is_found(folder, cut):
    path = folder / "00001.tar"
    os.truncate(path, path.stat().st_size - cut)
    faults = what(verify_folder(folder))
    assert "00001.tar: has" in faults
    assert "truncated" in faults


def test_a_changed_byte_is_found(folder):
    path = folder / "00001.tar"
    data = bytearray(path.read_bytes())
    data[512 + 40] ^= 1  # inside the first picture
    path.write_bytes(data)
    faults = what(verify_folder(folder))
    assert "00001.tar: has another checksum" in faults
    assert "00001.tar:k0010: its picture has another checksum than its JSON says" in faults


def test_missing_and_stray_shards_are_found(folder):
    (folder / "00001.tar").rename(folder / "00009.tar")
    faults = what(verify_folder(folder))
    assert "00009.tar: is not in the index" in faults
    assert "00001.tar: is missing" in faults


def test_missing_members_wrong_captions_and_broken_pictures_are_found(tmp_path):
    value = json.dumps({"captions": ["a"]}).encode()
    good = {"a.png": picture(1), "a.txt": b"a", "a.json": value}
    make_tar(
        tmp_path / "0.tar",
        good
        | {"b.png": picture(2), "b.json": value}
        | {"c.png": picture(3)[:50], "c.txt": b"x", "c.json": value}
        | {"d.png": picture(4), "d.txt": b"a"},
    )
    index_folder(tmp_path)
    assert [str(fault) for fault in verify_folder(tmp_path)] == [
        "0.tar:b: has no .txt member",
        "0.tar:c: broken picture",
        "0.tar:c: its .txt is not its first caption",
        "0.tar:d: has no .json member",
    ]
    assert "broken picture" not in what(verify_folder(tmp_path, decode=False))


def test_a_folder_without_index_is_one_fault(folder):
    (folder / "index.json").unlink()
    assert "has no index.json" in what(verify_folder(folder))


def test_rows_that_do_not_fit_the_shards_are_found(folder):
    rows = np.load(folder / "samples.npy")
    rows[3, 0] += 512
    np.save(folder / "samples.npy", rows)
    assert "at other places" in what(verify_folder(folder))
    np.save(folder / "samples.npy", rows[:-1])
    assert "wants int64 (25, 5)" in what(verify_folder(folder))


def test_index_of_foreign_shards_counts_their_captions(tmp_path):
    # As img2dataset writes them: the JSON member has one `caption`.
    meta = json.dumps({"caption": "a dog", "key": "000000001"}).encode()
    make_tar(
        tmp_path / "00000.tar",
        {"000000001.jpg": picture(1, 8, ".jpg"), "000000001.json": meta, "000000001.txt": b"a dog", "x.txt": b"t"},
    )
    account = index_folder(tmp_path)
    assert account == {"asked": 2, "written": 1, "skipped": {"no picture": 1}}
    index, rows = load_index(tmp_path)
    assert rows[:, 2:4].tolist() == [[1, 0]]
    assert index["shardlist"][0]["nsamples"] == 1


def test_making_the_index_again_keeps_the_rows(folder):
    before = np.array(load_index(folder)[1])
    index_folder(folder)
    assert np.array_equal(load_index(folder)[1], before)


def test_a_key_in_two_shards_is_found(tmp_path):
    make_tar(tmp_path / "0.tar", {"a.png": picture(1), "a.txt": b"", "a.json": b"{}"})
    index_folder(tmp_path)
    make_tar(tmp_path / "1.tar", {"a.png": picture(1)})
    with pytest.raises(UserError, match="occurs twice"):
        index_folder(tmp_path)


def test_an_empty_folder_and_a_truncated_tar_are_the_users_errors(tmp_path):
    with pytest.raises(UserError, match=r"no \.tar"):
        index_folder(tmp_path)
    (tmp_path / "0.tar").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="truncated or not a tar"):
        index_folder(tmp_path)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../a.png", "a/../../b.png", "a\\b.png", "a\n.png", "a.pyd", "a.Pickle", "a.pkl.png"]
)
def test_unsafe_names_are_refused(tmp_path, name):
    assert why_unsafe(name) is not None
    make_tar(tmp_path / "0.tar", {name: b"x"})
    with pytest.raises(BadTar, match="refused"):
        list_members(tmp_path / "0.tar")


@pytest.mark.parametrize("name", ["a.png", "b/a.left.png", "0-1.json", "ä.txt"])
def test_plain_names_are_accepted(name):
    assert why_unsafe(name) is None


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    make_tar(tmp_path / "0.tar", {"a.png": b""}, type=kind, linkname="/etc/passwd")
    with pytest.raises(BadTar, match="link or a device"):
        list_members(tmp_path / "0.tar")


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "a b", "ä", "x" * 81, "../x"])
def test_records_refuse_keys_that_readers_would_split(key):
    with pytest.raises(ValueError, match="key="):
        Record(key=key, source="s", id="1", images={"": b""})


def test_a_key_with_thousands_of_pictures_is_a_fault_that_takes_no_memory(tmp_path):
    data = picture(1) + bytes(1 << 20)
    make_tar(tmp_path / "0.tar", {f"a.{number}.png": data for number in range(40)} | {"a.txt": b"c"})
    tracemalloc.start()
    try:
        faults = verify_folder(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "0.tar:a: not one picture, or a left and a right one" in what(faults)
    assert peak < 8 << 20


def test_the_checksum_counts_of_our_samples_that_img2datasets_were_made_into(tmp_path):
    told = {"captions": ["c"], "original_width": 640, "url": "http://a/b", "sha256": "0" * 64}
    make_tar(tmp_path / "0.tar", {"a.png": picture(1), "a.txt": b"c", "a.json": json.dumps(told).encode()})
    assert "another checksum than its JSON says" in what(verify_folder(tmp_path))
    told |= {"status": "success", "error_message": None}  # its own: of the picture before it was resized
    make_tar(tmp_path / "0.tar", {"a.png": picture(1), "a.txt": b"c", "a.json": json.dumps(told).encode()})
    assert "another checksum" not in what(verify_folder(tmp_path))


@pytest.mark.parametrize("width", ["x" * 100_000, [[8]], None, 8.5, True])
def test_a_width_that_is_none_is_told_in_few_words(tmp_path, width):
    told = json.dumps({"captions": ["c"], "width": width, "height": 8})
    make_tar(tmp_path / "0.tar", {"a.png": picture(1), "a.txt": b"c", "a.json": told.encode()})
    faults = verify_folder(tmp_path)
    assert {fault.kind for fault in faults} == {"index", "bad json"}
    assert all(len(str(fault)) < 1000 for fault in faults)
