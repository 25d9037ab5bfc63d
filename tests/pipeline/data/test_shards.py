import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.errors import UserError
from data_prep.make_index import index_folder
from pipeline.data.decode import BadSample
from pipeline.data.shards import ShardFolder, parse_sample
from pipeline.data.storage import StorageConfig
from tests.pipeline.data.samples import MakeSplit, png

GOOD = {"k.png": b"picture", "k.txt": b"first", "k.json": b'{"captions": ["first", "second"], "group": "g"}'}


def tar(members: dict[str, bytes], layout: int = tarfile.USTAR_FORMAT, kind: bytes = tarfile.REGTYPE) -> bytes:
    """The members' blocks, without the end mark."""
    blocks = []
    for name, data in members.items():
        info = tarfile.TarInfo(name)
        info.size, info.type = len(data), kind
        blocks.append(info.tobuf(layout) + data + bytes(-len(data) % 512))
    return b"".join(blocks)


def test_every_sample_reads_as_it_was_written(make_split: MakeSplit) -> None:
    folder = ShardFolder(make_split(12))
    assert len(folder) == 12
    for row in (11, 0, 5, 4):
        sample = folder.read(row)
        assert sample.key == f"s{row}"
        assert sample.image == png(row)
        assert sample.group == f"g{row // 2}"
        assert sample.captions == ([] if row % 4 == 3 else [f"caption {k} of {row}" for k in range(2)])
        told = {"text": f"statement 2 of {row}", "label": row % 3 == 2}
        assert sample.text("statements", 2) == (told["text"], int(row % 3 == 2), told)
    assert folder.place(7) == "00001.tar#2"


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("prefix", ["", "folder/deeper/", "x" * 90 + "/" + "y" * 30 + "/"])
def test_every_dialect_of_tar_is_read(layout: int, prefix: str) -> None:
    sample = parse_sample(tar({prefix + name: data for name, data in GOOD.items()}, layout))
    assert sample.key == f"{prefix}k"
    assert sample.images == {"": b"picture"}
    assert sample.captions == ["first", "second"]


def test_pairs_have_two_pictures() -> None:
    sample = parse_sample(tar({"k.left.png": b"l", "k.right.jpg": b"r", "k.json": b"{}"}))
    assert sample.images == {"left": b"l", "right": b"r"}
    with pytest.raises(BadSample, match="where one is wanted"):
        _ = sample.image


@pytest.mark.parametrize(
    ("members", "captions"),
    [
        ({"k.jpg": b"p", "k.txt": b"said"}, ["said"]),
        ({"k.jpg": b"p", "k.json": b'{"caption": "told"}'}, ["told"]),
        ({"k.jpg": b"p", "k.json": b'{"caption": null}'}, []),
        ({"k.jpg": b"p", "k.txt": b"", "k.json": b'{"captions": []}'}, []),
    ],
)
def test_captions_of_other_tools_are_found(members: dict[str, bytes], captions: list[str]) -> None:
    assert parse_sample(tar(members)).captions == captions


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tar(GOOD | {"other.txt": b""}), "2 samples"),
        (b"", "0 samples"),
        (tar({"k.txt": b"x", "k.json": b"{}"}), "not one picture"),
        (tar({"k.png": b"x", "k.jpg": b"y"}), "not one picture"),
        (tar({"k.png": b"x"}) * 2, "twice"),
        (tar({"k.png": b"x", "k.json": b"{nonsense"}), "JSON"),
        (tar({"k.png": b"x", "k.json": b"[1]"}), "object"),
        (tar({"k.png": b"x", "k.json": b'{"captions": "one"}'}), "captions"),
        (tar({"k.png": b"x", "k.json": b'{"captions": [1]}'}), "captions"),
        (tar({"k.png": b"x", "k.txt": b"\xff\xfe"}), "UTF-8"),
        (tar({"k.png": b""}, kind=tarfile.SYMTYPE), "link"),
        (tar(GOOD)[:-512], "broken"),
        (bytes(1024), "broken"),
    ],
)
def test_what_is_no_sample_is_a_bad_sample(data: bytes, reason: str) -> None:
    with pytest.raises(BadSample, match=reason):
        parse_sample(data)


def octal(value: int) -> bytes:
    """A size of a header, below zero too, with a sum that is right."""
    block = bytearray(tar({"k.png": b""}))
    block[124:136] = b"%011o\0" % value if value >= 0 else b"-%010o\0" % -value
    return with_sum(block)


def with_sum(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


def binary(value: int) -> bytes:
    """The same as GNU writes what is too large for octal digits, in 95 bits and their sign."""
    block = bytearray(tar({"k.png": b""}))
    block[124:136] = bytes([0xFF if value < 0 else 0x80]) + (value & ((1 << 88) - 1)).to_bytes(11, "big")
    return with_sum(block)


def pax(value: int) -> bytes:
    """The same in an extension."""
    record = b" size=%d\n" % value
    record = b"%d" % (len(record) + 2) + record
    block = bytearray(tar({"k.png": record}))
    block[156:157] = b"x"
    return with_sum(block) + tar({"k.png": b""})


@pytest.mark.timeout(20)
@pytest.mark.parametrize("size", [-512, -1024, -511, -10_000, 1 << 32])
@pytest.mark.parametrize("header", [octal, binary, pax])
def test_sizes_below_zero_and_beyond_the_end_are_damage_and_no_endless_loop(header, size: int) -> None:
    with pytest.raises(BadSample, match="tar members are broken"):
        parse_sample(header(size))


@pytest.mark.parametrize("name", ["k.pyd", "k.pickle", "k.left.pkl", "../k.txt", "/k.txt"])
def test_pickles_and_names_that_lead_out_are_refused_by_name(name: str) -> None:
    with pytest.raises(UserError, match="refused"):
        parse_sample(tar(GOOD | {name: b""}))


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 100_000), st.integers(1, 255))
def test_a_damaged_byte_is_noticed_or_harmless(place: int, change: int) -> None:
    data = bytearray(tar(GOOD))
    data[place % len(data)] ^= change
    try:
        sample = parse_sample(bytes(data))
        assert set(sample.images) == {""}
    except (BadSample, UserError) as error:
        assert str(error)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, len(tar(GOOD)) - 1))
def test_a_cut_sample_is_never_taken_for_a_whole_one(length: int) -> None:
    whole = tar(GOOD)
    try:
        assert parse_sample(whole[:length]).fields != parse_sample(whole).fields
        assert length % 512 == 0  # between two members nothing tells
    except BadSample:
        pass


def test_a_truncated_shard_is_named(make_split: MakeSplit) -> None:
    path = make_split(10)
    os.truncate(path / "00001.tar", 3000)
    folder = ShardFolder(path)
    assert folder.read(4).key == "s4"
    with pytest.raises(BadSample, match=r"truncated: 00001\.tar"):
        folder.read(9)


def test_a_missing_shard_is_the_users_to_mend(make_split: MakeSplit) -> None:
    path = make_split(10)
    (path / "00001.tar").unlink()
    with pytest.raises(UserError, match=r"cannot read shard .*00001\.tar"):
        ShardFolder(path).read(9)


@pytest.mark.parametrize("url", ["pipe:cat 00000.tar", "../00000.tar", "http://host/00000.tar", "/etc/x.tar"])
def test_shards_elsewhere_and_commands_are_refused(make_split: MakeSplit, url: str) -> None:
    path = make_split(3)
    index = json.loads((path / "index.json").read_text())
    index["shardlist"][0]["url"] = url
    (path / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="only plain file names"):
        ShardFolder(path)


def test_a_folder_without_an_index_is_refused(tmp_path: Path, make_split: MakeSplit) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        ShardFolder(tmp_path / "nowhere")
    path = make_split(3)
    (path / "index.json").unlink()
    with pytest.raises(UserError, match=r"index\.json"):
        ShardFolder(path)


def test_shards_of_another_tool_are_read_once_indexed(tmp_path: Path) -> None:
    members = {}
    for k in range(4):
        members |= {
            f"00000{k}.jpg": b"picture",
            f"00000{k}.json": json.dumps({"caption": f"told {k}"}).encode(),
            f"00000{k}.txt": f"told {k}".encode(),
        }
    (tmp_path / "00000.tar").write_bytes(tar(members, tarfile.GNU_FORMAT) + bytes(10240))
    index_folder(tmp_path)
    folder = ShardFolder(tmp_path)
    assert [folder.read(row).captions for row in range(4)] == [[f"told {k}"] for k in range(4)]


def test_a_folder_survives_pickling_and_many_shards(make_split: MakeSplit, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.data.storage._OPEN_SHARDS", 2)
    folder = ShardFolder(make_split(9, shard_samples=1))
    before = len(os.listdir("/proc/self/fd"))
    assert [folder.read(row).key for row in (*range(9), 0)] == [*(f"s{k}" for k in range(9)), "s0"]
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    assert pickle.loads(pickle.dumps(folder)).read(3).key == "s3"
    folder.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_digest_follows_the_data(make_split: MakeSplit) -> None:
    one, same, other = make_split(4), make_split(4, name="copy"), make_split(5, name="other")
    shutil.copy(one / "index.json", same / "index.json")
    assert ShardFolder(one).digest == ShardFolder(same).digest != ShardFolder(other).digest


def test_units_count_the_texts(make_split: MakeSplit) -> None:
    folder = ShardFolder(make_split(8))
    assert folder.units("captions", "pair").total == 12
    assert folder.units("captions", "image").total == 6
    assert folder.units("statements", "pair").total == 24


def test_the_fast_parse_equals_tarfiles() -> None:
    from pipeline.data.shards import _any_members, _plain_members

    data = tar(GOOD)
    assert _plain_members(data) == _any_members(data) == list(GOOD.items())
    with tarfile.open(fileobj=io.BytesIO(data + bytes(1024))) as file:
        assert file.getnames() == list(GOOD)


@given(st.binary(max_size=256))
def test_the_fast_sum_is_the_sum(data: bytes) -> None:
    from pipeline.data.shards import _sum

    assert _sum(data) == sum(data)
    assert _sum(b"\xff" * 256) == 255 * 256


def test_a_shard_that_is_a_folder_is_the_users_to_mend(make_split: MakeSplit) -> None:
    path = make_split(12)
    (path / "00001.tar").unlink()
    (path / "00001.tar").mkdir()
    for checksums in (False, True):
        with pytest.raises(UserError, match=r"cannot read shard .*00001\.tar \(Is a directory\)"):
            ShardFolder(path, StorageConfig(checksums=checksums)).read(5)
