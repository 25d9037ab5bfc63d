"""The checksum of each sample: which of a damaged shard's samples were changed, and which were not."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.checksums import of_members
from data_prep.errors import UserError
from data_prep.faults import counts
from data_prep.index import COLUMNS, load_index
from data_prep.job import Layout
from data_prep.make_index import index_folder
from data_prep.repair import Repair, repair_folder
from data_prep.tars import BLOCK, header, list_members
from data_prep.verify import verify_folder
from data_prep.writer import write_split
from launch.cli import main
from pipeline.data.shards import ShardFolder
from tests.data_prep.samples import Plain, contents, picture
from tests.data_prep.test_verify import make_tar

TAR = "00001.tar"


@pytest.fixture
def folder(tmp_path) -> Path:
    write_split(Plain(), tmp_path / "train", name="plain", fingerprint="f", layout=Layout(shard_samples=10), workers=1)
    return tmp_path / "train"


def checksums(folder: Path) -> dict[str, int]:
    """By key."""
    rows = load_index(folder)[1]
    shards = ShardFolder(folder)
    found = {shards.read(number).key: int(rows[number, COLUMNS.index("crc32")]) for number in range(len(shards))}
    shards.close()
    return found


def replace_bytes(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert len(old) == len(new) and data.count(old) == 1
    path.write_bytes(data.replace(old, new))


def rename(path: Path, old: str, new: str) -> None:
    """Gives a member another name, with a right header."""
    member = next(member for member in list_members(path) if member.name == old)
    data = path.read_bytes()
    path.write_bytes(data[: member.begin] + header(new, member.size) + data[member.begin + BLOCK :])


def lost_keys(repair: Repair) -> list[str | None]:
    return [lost.key for lost in repair.named]


def test_names_bytes_and_their_order_are_in_it_and_how_they_come_in_pieces_is_not():
    value = of_members([("a.png", [b"12", b"3"]), ("a.txt", [b""])])
    assert value == of_members([("a.png", [b"1", b"", b"23"]), ("a.txt", [])])
    others = [
        of_members([("a.txt", [b""]), ("a.png", [b"123"])]),
        of_members([("a.png", [b"124"]), ("a.txt", [b""])]),
        of_members([("b.png", [b"123"]), ("a.txt", [b""])]),
        of_members([("a.png", [b"123"])]),
        of_members([]),
    ]
    assert len({value, *others}) == 6
    assert of_members([("\udce4.png", [b"1"])]) != of_members([("\udce5.png", [b"1"])])


CHANGES: dict[str, Callable[[Path], None]] = {
    "a letter of a caption": lambda path: replace_bytes(path, b'"number 12"', b'"numbe2 12"'),
    "a bit of a statement's label": lambda path: replace_bytes(path, b'12", "label": true', b'12", "label": null'),
    "a field of the source": lambda path: replace_bytes(path, b'"number": 12', b'"number": 52'),
    "white space": lambda path: replace_bytes(path, b'"number": 12', b'"number":\t12'),
}


@pytest.mark.parametrize("name", CHANGES)
def test_of_a_damaged_shard_exactly_the_changed_sample_goes(folder, name):
    before = checksums(folder)
    CHANGES[name](folder / TAR)
    faults = verify_folder(folder)
    assert counts(faults) == {"checksum": 2}
    assert [fault.where for fault in faults] == ["00001.tar", "00001.tar:k0012"]
    repair = repair_folder(folder, decode=False)
    assert (lost_keys(repair), repair.lost, repair.kept) == (["k0012"], {"checksum": 1}, 24)
    assert verify_folder(folder) == []
    assert checksums(folder) == {key: value for key, value in before.items() if key != "k0012"}


def test_members_that_have_another_name_are_no_longer_that_sample(folder):
    for extension in ("png", "txt", "json"):
        rename(folder / TAR, f"k0012.{extension}", f"k9999.{extension}")
    assert lost_keys(repair_folder(folder)) == ["k9999"]
    assert verify_folder(folder) == []


def test_several_processes_compare_them_too(folder):
    replace_bytes(folder / TAR, b'"number 12"', b'"numbe2 12"')
    replace_bytes(folder / "00002.tar", b'"number 23"', b'"numbe2 23"')
    assert lost_keys(repair_folder(folder, workers=2)) == ["k0012", "k0023"]


def test_a_shard_that_another_tool_wrote_anew_loses_nothing(folder):
    before = checksums(folder)
    with tarfile.open(folder / TAR) as tar:
        members = [(info.name, tar.extractfile(info).read()) for info in tar]
    with tarfile.open(folder / TAR, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in [*members[9:], *members[:9]]:  # the samples in another order too
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uname = len(data), 1234567890.5, "ä"
            tar.addfile(info, io.BytesIO(data))
    assert set(counts(verify_folder(folder))) == {"count"}
    assert repair_folder(folder).lost == {}
    assert verify_folder(folder) == []
    assert checksums(folder) == before


def test_foreign_shards_get_them_with_their_index(tmp_path):
    def sample(number: int) -> list[tuple[str, bytes]]:
        told = json.dumps({"caption": f"dog {number}", "key": f"{number}"}).encode()
        return [(f"{number}.jpg", picture(number, 8, ".jpg")), (f"{number}.json", told), (f"{number}.cls", b"7")]

    make_tar(tmp_path / "0.tar", [member for number in range(3) for member in sample(number)])
    index_folder(tmp_path)
    assert checksums(tmp_path) == {str(n): of_members((name, [data]) for name, data in sample(n)) for n in range(3)}
    replace_bytes(tmp_path / "0.tar", b"dog 1", b"fog 1")
    assert lost_keys(repair_folder(tmp_path)) == ["1"]
    assert set(checksums(tmp_path)) == {"0", "2"}


def test_pictures_without_a_checksum_in_their_json_are_looked_after_as_well(tmp_path):
    data = picture(1) + b"behind the end of the picture"
    make_tar(tmp_path / "0.tar", {"a.png": data, "a.txt": b"c", "b.png": picture(2), "b.txt": b"c"})
    index_folder(tmp_path)
    replace_bytes(tmp_path / "0.tar", b"behind", b"beside")
    assert lost_keys(repair_folder(tmp_path)) == ["a"]


def test_without_the_rows_a_changed_text_stays(folder):
    replace_bytes(folder / TAR, b'"number 12"', b'"numbe2 12"')
    (folder / "samples.npy").unlink()
    assert repair_folder(folder).lost == {}
    assert verify_folder(folder) == []


def test_a_wrong_checksum_of_a_sample_costs_nothing_where_the_shard_is_whole(folder):
    before = contents(folder)
    rows = np.load(folder / "samples.npy")
    rows[:, 4] ^= 1
    np.save(folder / "samples.npy", rows)
    assert counts(verify_folder(folder)) == {"samples.npy": 3}
    assert repair_folder(folder).lost == {}
    rows[:, 4] ^= 1
    assert np.array_equal(load_index(folder)[1], rows)
    assert {name: data for name, data in contents(folder).items() if name.endswith(".tar")} == {
        name: data for name, data in before.items() if name.endswith(".tar")
    }


def test_a_shard_in_the_place_of_another_is_set_aside_and_an_index_of_it_can_be_made(folder, tmp_path):
    write_split(Plain(size=10, sides=(16,)), tmp_path / "other", name="o", fingerprint="f", layout=Layout(), workers=1)
    shutil.copy(tmp_path / "other" / "00000.tar", folder / TAR)
    other = (folder / TAR).read_bytes()
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "00000.tar").unlink()
    repair = repair_folder(folder)
    assert (repair.set_aside, repair.removed, repair.kept) == ([TAR], [], 15)
    assert (folder / f"{TAR}.orphan").read_bytes() == other
    assert verify_folder(folder) == []
    assert index_folder(tmp_path / "copy")["written"] == 15
    assert verify_folder(tmp_path / "copy") == []


def test_where_all_shards_are_others_nothing_is_touched(folder, tmp_path):
    write_split(
        Plain(sides=(16,)), tmp_path / "other", name="o", fingerprint="f", layout=Layout(shard_samples=10), workers=1
    )
    for path in (tmp_path / "other").glob("*.tar"):
        shutil.copy(path, folder)
    before = contents(folder)
    with pytest.raises(UserError, match=r"nothing was touched.*trimline index"):
        repair_folder(folder)
    assert contents(folder) == before


def test_an_index_of_before_there_were_any_is_refused_in_a_line_and_made_again(folder, capsys):
    before = np.array(load_index(folder)[1])
    np.save(folder / "samples.npy", before[:, :4])
    index = json.loads((folder / "index.json").read_text())
    index["columns"] = index["columns"][:4]
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"of another version.*`trimline index") as error:
        ShardFolder(folder)
    assert "\n" not in str(error.value)
    assert counts(verify_folder(folder)) == {"samples.npy": 1}
    assert main(["index", str(folder)]) == 0
    assert verify_folder(folder) == []
    assert np.array_equal(load_index(folder)[1], before)
