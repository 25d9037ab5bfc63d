import json
import os
import random
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from data_prep.errors import UserError
from data_prep.faults import counts
from data_prep.files import sha256_file
from data_prep.index import load_index
from data_prep.job import Layout
from data_prep.keys import ShardKeys
from data_prep.make_index import RowFile, index_folder
from data_prep.repair import _Look, repair_folder
from data_prep.rewrite import RewriteTask, rewrite_shard
from data_prep.sample_check import Checks
from data_prep.shard_check import check_shards
from data_prep.stats import count_folder, describe
from data_prep.verify import survey_folder, verify_folder
from data_prep.writer import write_split
from pipeline.data.shards import ShardFolder
from tests.data_prep.mutations import KINDS, Mutation, mutations
from tests.data_prep.samples import Plain, contents, picture
from tests.data_prep.test_verify import make_tar, what


@pytest.fixture
def folder(tmp_path) -> Path:
    write_split(Plain(), tmp_path / "train", name="plain", fingerprint="f", layout=Layout(shard_samples=10), workers=1)
    return tmp_path / "train"


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "train"
    write_split(Plain(size=30), path, name="plain", fingerprint="f", layout=Layout(shard_samples=10), workers=1)
    return path


def samples(folder: Path) -> dict[str, tuple[bytes, dict]]:
    """Every sample as training reads it."""
    shards = ShardFolder(folder)
    read = [shards.read(row) for row in range(len(shards))]
    shards.close()
    return {sample.key: (sample.image, sample.fields) for sample in read}


def named(repair) -> set[str]:
    return {lost.key for lost in repair.named if lost.key is not None}


def test_a_good_folder_is_not_touched(folder):
    before = contents(folder)
    repair = repair_folder(folder)
    assert (repair.faults, repair.lost, repair.kept) == ([], {}, 0)
    assert contents(folder) == before


def test_a_truncated_tar_keeps_its_whole_samples(folder):
    before = samples(folder)
    shard = folder / "00001.tar"
    os.truncate(shard, shard.stat().st_size - 1024 - 4000)
    repair = repair_folder(folder)
    after = samples(folder)
    assert verify_folder(folder) == []
    assert after == {key: before[key] for key in after}
    lost = set(before) - set(after)
    assert 1 <= len(lost) <= 3
    assert repair.kept == len(after) == 25 - repair.lost.total()
    index, _ = load_index(folder)
    assert index["account"]["asked"] == 25
    assert index["account"]["written"] == len(after)
    assert sum(index["account"]["skipped"].values()) == len(lost)
    assert "fingerprint" not in index  # else the command that wrote it would take it for complete
    assert index["name"] == "plain"


def test_lost_samples_are_named_with_their_reasons_in_a_file(folder):
    shard = folder / "00001.tar"
    data = bytearray(shard.read_bytes())
    data[512 + 40] ^= 1
    shard.write_bytes(data)
    repair = repair_folder(folder, decode=False)
    assert named(repair) == {"k0010"}
    (folder / "00002.tar").unlink()
    again = repair_folder(folder)
    assert again.lost == {"missing shard": 5}
    lines = [json.loads(line) for line in (folder / "lost.jsonl").read_text().splitlines()]
    assert [(line["shard"], line["key"], line["reason"], line["samples"]) for line in lines] == [
        ("00001.tar", "k0010", "checksum", 1),
        ("00002.tar", None, "missing shard", 5),
    ]
    assert load_index(folder)[0]["account"]["skipped"] == {"damaged: checksum": 1, "damaged: missing shard": 5}
    assert verify_folder(folder) == []


def test_a_shard_of_another_name_gets_its_own_back_and_strangers_are_set_aside(folder):
    (folder / "00001.tar").rename(folder / "copy.tar")
    make_tar(folder / "00009.tar", {"x.png": picture(1), "x.txt": b"", "x.json": b"{}"})
    repair = repair_folder(folder)
    assert repair.renamed == {"copy.tar": "00001.tar"}
    assert repair.set_aside == ["00009.tar"]
    assert (folder / "00009.tar.orphan").exists()
    assert (repair.lost, repair.kept) == ({}, 25)
    assert load_index(folder)[0]["fingerprint"] == "f"
    assert verify_folder(folder) == []


@pytest.mark.parametrize("name", ["index.json", "samples.npy"])
@pytest.mark.parametrize("how", ["unlink", "empty", "nonsense"])
def test_a_broken_index_is_made_again_and_nothing_is_lost(folder, name, how):
    before = samples(folder)
    path = folder / name
    if how == "unlink":
        path.unlink()
    else:
        path.write_bytes(b"" if how == "empty" else b"[1, 2")
    assert set(counts(verify_folder(folder))) == {"index" if name == "index.json" else "samples.npy"}
    assert repair_folder(folder).lost == {}
    assert verify_folder(folder) == []
    assert samples(folder) == before


def test_of_two_samples_with_one_key_the_first_good_one_stays(tmp_path):
    def sample(key: str, number: int, broken: bool = False) -> dict[str, bytes]:
        data = picture(number)[: 40 if broken else None]
        return {
            f"{key}.png": data,
            f"{key}.txt": b"c",
            f"{key}.json": json.dumps({"captions": ["c"], "n": number}).encode(),
        }

    make_tar(tmp_path / "0.tar", sample("a", 0) | sample("b", 1, broken=True))
    make_tar(tmp_path / "1.tar", [*sample("b", 2).items(), *sample("c", 3).items(), *sample("c", 4).items()])
    make_tar(tmp_path / "2.tar", sample("a", 5))
    with pytest.raises(UserError, match=r"3 such keys.*--repair"):
        index_folder(tmp_path)
    assert counts(verify_folder(tmp_path))["duplicate key"] == 3
    repair = repair_folder(tmp_path)
    assert {key: fields["n"] for key, (_, fields) in samples(tmp_path).items()} == {"a": 0, "b": 2, "c": 3}
    assert repair.removed == ["2.tar"]
    assert repair.lost == {"bad image": 1, "duplicate key": 2}
    assert verify_folder(tmp_path) == []


def test_a_sample_that_lacks_its_text_displaces_no_whole_one_of_its_key(tmp_path):
    def sample(key: str, number: int, *, text: bool = True) -> dict[str, bytes]:
        told = json.dumps({"captions": ["c"], "n": number}).encode()
        return {f"{key}.png": picture(number), f"{key}.json": told} | ({f"{key}.txt": b"c"} if text else {})

    make_tar(tmp_path / "0.tar", sample("a", 0) | sample("b", 1, text=False))
    make_tar(tmp_path / "1.tar", sample("b", 2) | sample("c", 3))
    repair = repair_folder(tmp_path)
    assert {key: fields["n"] for key, (_, fields) in samples(tmp_path).items()} == {"a": 0, "b": 2, "c": 3}
    assert repair.lost == {"missing member": 1}
    assert verify_folder(tmp_path) == []


def test_refused_members_go_and_their_samples_stay(tmp_path):
    good = {"a.png": picture(1), "a.txt": b"c", "a.json": b'{"captions": ["c"]}'}
    make_tar(tmp_path / "0.tar", good | {"a.pyd": b"cos\nsystem\n", "../x.png": b"x", "/etc/y.png": b"y"})
    with tarfile.open(tmp_path / "0.tar", "a") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("b.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    assert counts(verify_folder(tmp_path))["unsafe member"] == 8
    repair = repair_folder(tmp_path)
    assert repair.lost == {}
    with tarfile.open(tmp_path / "0.tar") as tar:
        assert tar.getnames() == list(good)
    assert verify_folder(tmp_path) == []


def test_where_nothing_is_good_nothing_is_touched(tmp_path):
    make_tar(tmp_path / "0.tar", {"a.png": b"no picture", "a.txt": b"", "a.json": b"{}"})
    (tmp_path / "1.tar").write_bytes(b"nonsense")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="no sample of it is good"):
        repair_folder(tmp_path)
    assert contents(tmp_path) == before


def test_where_what_is_good_lacks_what_the_others_have_nothing_is_touched_either(tmp_path):
    make_tar(tmp_path / "0.tar", {"a.png": b"no picture", "a.txt": b"c", "b.png": b"no picture", "b.txt": b"c"})
    make_tar(tmp_path / "1.tar", {"c.png": picture(1), "c.json": b'{"captions": ["c"]}'})
    before = contents(tmp_path)
    with pytest.raises(UserError, match="no sample of it is good"):
        repair_folder(tmp_path)
    assert contents(tmp_path) == before


def test_a_folder_that_is_being_written_is_left_alone(folder):
    (folder / ".parts").mkdir()
    (folder / "index.json").unlink()
    for command in (repair_folder, index_folder):
        with pytest.raises(UserError, match="not finished"):
            command(folder)
    assert not (folder / "index.json").exists()


def test_a_shard_that_another_repair_has_written_meanwhile_is_not_written_by_old_findings(folder):
    # By its old number, what is left out would be another sample now.
    shard = folder / "00001.tar"
    task = RewriteTask(path=shard, checks=Checks(), sha256=sha256_file(shard), drop=frozenset({3}))
    rewrite_shard(task)
    before = shard.read_bytes()
    with pytest.raises(UserError, match="changed while it was repaired"):
        rewrite_shard(task)
    assert shard.read_bytes() == before


def test_what_a_killed_repair_left_half_written_goes(folder):
    (folder / ".00001.tar.4711.abcd.tmp").write_bytes(b"half")
    (folder / "index.json").unlink()
    repair_folder(folder)
    assert [path.name for path in folder.glob(".*")] == []


@pytest.mark.parametrize("skipped", [{"broken": "many"}, {"broken": None}, [1], "x"])
def test_an_account_that_counts_in_words_is_a_fault_and_is_made_again(folder, skipped):
    index = json.loads((folder / "index.json").read_text())
    index["account"]["skipped"] = skipped
    (folder / "index.json").write_text(json.dumps(index))
    assert set(counts(verify_folder(folder))) == {"count"}
    assert repair_folder(folder).lost == {}
    assert verify_folder(folder) == []


def test_the_rows_of_shards_that_were_looked_through_are_let_go(folder):
    survey = survey_folder(folder, decode=False)
    with RowFile() as rows, ShardKeys() as keys:
        look = _Look(survey, rows, keys)
        for findings in check_shards(survey.tasks):
            look.add(findings)
        # A slice that is empty holds what it was cut from.
        assert all(shard.rows.base is None for shard in look.shards)


def test_long_names_and_pax_headers_survive(tmp_path):
    key = "folder/" + "k" * 120
    for layout, number in ((tarfile.GNU_FORMAT, 0), (tarfile.PAX_FORMAT, 1)):
        with tarfile.open(tmp_path / f"{number}.tar", "w", format=layout) as tar:
            for name, data in (
                (f"{key}{number}.png", picture(number)),
                (f"{key}{number}.txt", "ä".encode()),
                (f"{key}{number}.json", json.dumps({"captions": ["ä"]}).encode()),
                (f"bad{number}.png", b"no picture"),
            ):
                (tmp_path / "member").write_bytes(data)
                tar.add(tmp_path / "member", name)
    repair = repair_folder(tmp_path)
    assert named(repair) == {"bad0", "bad1"}
    assert set(samples(tmp_path)) == {f"{key}0", f"{key}1"}
    assert verify_folder(tmp_path) == []


def test_several_processes_repair_like_one(whole, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(whole, tmp_path / name)
        for number in (0, 2):
            os.truncate(tmp_path / name / f"0000{number}.tar", 5000)
    one = repair_folder(tmp_path / "one", workers=1)
    two = repair_folder(tmp_path / "two", workers=2)
    assert one.lost == two.lost
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


FUZZ = settings(
    max_examples=15,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # a smaller example explains no more
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@FUZZ
@given(mutation=mutations())
def test_whatever_happens_to_a_shard_nothing_good_is_lost_and_all_that_is_bad_is_counted(
    whole, tmp_path, mutation: Mutation
):
    check_mutated_shard(whole, tmp_path, mutation)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(4))
def test_the_same_for_many_more(whole, tmp_path, part):
    dice = random.Random(part)
    for _ in range(100):
        size = dice.choice((100, 3000, 20_000))
        mutation = Mutation(dice.choice(KINDS), dice.random(), dice.randint(1, size), dice.getrandbits(64))
        check_mutated_shard(whole, tmp_path, mutation)


def check_mutated_shard(whole: Path, tmp_path: Path, mutation: Mutation) -> None:
    folder = tmp_path / "train"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    before = samples(whole)
    shard = folder / "00001.tar"
    old = shard.read_bytes()
    new = mutation.apply(old)
    shard.write_bytes(new)
    faults = verify_folder(folder)
    assert bool(faults) == (new != old)
    repair = repair_folder(folder)
    assert verify_folder(folder) == [], what(repair.faults)
    after = samples(folder)
    # What is kept is what was there, byte for byte.
    assert after == {key: before[key] for key in after}
    # What no byte of was touched is kept.
    rows = load_index(whole)[1]
    for number, key in enumerate(before):
        touched = 10 <= number < 20 and mutation.touches(int(rows[number, 0]), int(rows[number, 1]), len(old))
        assert touched or key in after, (key, mutation, what(repair.faults))
    # What is gone is counted.
    if faults:
        account = load_index(folder)[0]["account"]
        assert repair.kept == account["written"] == len(after)
        assert account["written"] + sum(account["skipped"].values()) == account["asked"]
        assert account["asked"] >= 30


@FUZZ
@given(mutation=mutations())
def test_whatever_happens_to_foreign_shards_they_are_indexed_counted_or_refused_in_one_line(
    whole, tmp_path, mutation: Mutation
):
    shard = tmp_path / "00001.tar"
    shard.write_bytes(mutation.apply((whole / "00001.tar").read_bytes()))
    figures = describe(count_folder(tmp_path))
    try:
        account = index_folder(tmp_path)
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert account["written"] == figures["samples"]
    folder = ShardFolder(tmp_path)
    column = np.array(load_index(tmp_path)[1])[:, 2]
    assert [len(folder.read(row).captions) for row in range(len(folder))] == column.tolist()
    folder.close()


@FUZZ
@given(mutation=mutations(largest=300))
@pytest.mark.parametrize("name", ["index.json", "samples.npy"])
def test_whatever_happens_to_an_index_it_is_a_fault_and_is_made_again(whole, tmp_path, name, mutation: Mutation):
    folder = tmp_path / "train"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    path = folder / name
    path.write_bytes(mutation.apply(path.read_bytes()))
    verify_folder(folder, decode=False)
    repair_folder(folder, decode=False)
    assert verify_folder(folder) == []
    assert set(samples(folder)) <= set(samples(whole))
