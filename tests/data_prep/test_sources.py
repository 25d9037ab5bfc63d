import csv
import dataclasses
import io
import json
import os
import shutil
import tarfile
import time
from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.index import load_index
from data_prep.sources import SourceConfig, prepare
from data_prep.sources.nlvr import read_examples, val_folders
from data_prep.verify import verify_folder
from tests.data_prep.samples import contents, picture

DATA = Path(os.environ.get("TRIMLINE_DATA", Path(__file__).resolve().parents[3] / "shared/data"))
needs_data = pytest.mark.skipif(
    not DATA.is_dir() and os.environ.get("CI") != "true",
    reason=f"the real data sets are not at {DATA}; set TRIMLINE_DATA",
)


def make_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def nlvr(tmp_path) -> Path:
    """An NLVR folder in little: 6 folders of 4 train examples, 3 dev examples of six pictures each."""
    root = tmp_path / "raw/nlvr"
    root.mkdir(parents=True)
    train, train_pictures, dev, dev_pictures = [], {}, [], {}
    for number in range(24):
        name, folder = f"{number // 2}-{number % 2}", str(number // 4)
        label = "true" if number % 3 else "false"
        train.append({"sentence": f"There is {number}.", "label": label, "identifier": name, "directory": folder})
        train_pictures[f"train/images/{folder}/train-{name}-0.png"] = picture(number)
    for number in range(3):
        name = f"{100 + number}-0"
        dev.append({"sentence": "A box.", "label": "true", "identifier": name, "directory": "0", "evals": {}})
        for k in range(6):
            dev_pictures[f"dev/images/0/dev-{name}-{k}.png"] = picture(k)
    for part, lines, pictures in (("train", train, train_pictures), ("dev", dev, dev_pictures)):
        (root / f"{part}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
        make_tar(root / f"images-{part}.tar", pictures)
    return root


@pytest.fixture
def flickr(tmp_path) -> Path:
    """A Flickr8k folder in little: 12 photographs, three captions each."""
    root = tmp_path / "raw/flickr8k_mini"
    root.mkdir(parents=True)
    with open(root / "captions.txt", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        rows.writerows([f"{n}_ab.jpg", f'Dog "{n}", {c} .'] for n in range(12) for c in range(3))
    make_tar(root / "images.tar", {f"images/{n}_ab.jpg": picture(n, 8, ".jpg") for n in range(12)})
    return root


def samples(folder: Path) -> dict[str, dict]:
    out = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for name in tar.getnames():
                if name.endswith(".json"):
                    out[name[:-5]] = json.loads(tar.extractfile(name).read())
    return out


def test_nlvr_splits_and_fields(nlvr, tmp_path):
    account = prepare(SourceConfig(name="nlvr", root=str(nlvr), shard_samples=7), tmp_path / "out")
    assert {name: split["written"] for name, split in account["splits"].items()} == {
        "train": 12, "val": 12, "dev": 18,
    }  # fmt: skip
    assert account["asked"] == account["written"] == 42
    train, val, dev = (samples(tmp_path / "out" / name) for name in ("train", "val", "dev"))
    assert not {v["directory"] for v in train.values()} & {v["directory"] for v in val.values()}
    example = (train | val)["3-0-0"]
    assert example["statements"] == [{"text": "There is 6.", "label": False}]
    assert example["captions"] == []
    assert (train | val)["3-1-0"]["captions"] == ["There is 7."]
    assert {key for key in dev if key.startswith("101-")} == {f"101-0-{k}" for k in range(6)}
    assert (dev["101-0-4"]["group"], dev["101-0-4"]["presentation"], dev["101-0-4"]["permutation"]) == (
        "101-0", "101", 4,
    )  # fmt: skip
    for name in ("train", "val", "dev"):
        assert verify_folder(tmp_path / "out" / name) == []


def test_root_may_be_the_folder_or_the_one_above(nlvr, flickr, tmp_path):
    for name, root in (("nlvr", nlvr), ("flickr8k", flickr)):
        sizes = {"val": 4, "test": 2} if name == "flickr8k" else {}
        for place in (root, root.parent):
            config = SourceConfig(name=name, root=str(place), sizes=sizes)
            prepare(config, tmp_path / f"{name}-{place.name}")
        assert contents(tmp_path / f"{name}-{root.name}") == contents(tmp_path / f"{name}-raw")


def test_sizes_cut_splits_down_and_keep_groups_whole(nlvr, tmp_path):
    config = SourceConfig(name="nlvr", root=str(nlvr), sizes={"train": 5, "dev": 13, "val": 0})
    account = prepare(config, tmp_path / "out")
    assert {name: split["written"] for name, split in account["splits"].items()} == {"train": 5, "dev": 12}
    groups = [value["group"] for value in samples(tmp_path / "out/dev").values()]
    assert all(groups.count(group) == 6 for group in groups)
    assert not (tmp_path / "out/val").exists()


def test_flickr_splits_share_no_photograph_and_keep_all_captions(flickr, tmp_path):
    config = SourceConfig(name="flickr8k", root=str(flickr), sizes={"val": 4, "test": 2})
    prepare(config, tmp_path / "out")
    splits = {name: samples(tmp_path / "out" / name) for name in ("train", "val", "test")}
    assert {name: len(split) for name, split in splits.items()} == {"train": 6, "val": 4, "test": 2}
    everything = {key: value for split in splits.values() for key, value in split.items()}
    assert len(everything) == 12
    assert everything["7_ab"]["captions"] == [f'Dog "7", {c} .' for c in range(3)]
    assert everything["7_ab"]["id"] == "7_ab.jpg"


def test_holding_out_everything_is_the_users_error(flickr, tmp_path):
    with pytest.raises(UserError, match=r"data\.sizes holds out 200 of 12"):
        prepare(SourceConfig(name="flickr8k", root=str(flickr)), tmp_path / "out")


def test_another_config_in_the_same_folder_replaces_its_shards(nlvr, tmp_path):
    small = SourceConfig(name="nlvr", root=str(nlvr), sizes={"train": 5})
    prepare(SourceConfig(name="nlvr", root=str(nlvr)), tmp_path / "out")
    prepare(small, tmp_path / "out")
    prepare(small, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_changed_raw_files_are_noticed(nlvr, tmp_path):
    config = SourceConfig(name="nlvr", root=str(nlvr))
    prepare(config, tmp_path / "out")
    lines = (nlvr / "train.json").read_text().splitlines()
    (nlvr / "train.json").write_text("\n".join(lines[:-1]))
    assert prepare(config, tmp_path / "out")["written"] == 41


def test_missing_pictures_are_counted(nlvr, tmp_path):
    make_tar(nlvr / "images-train.tar", {"train/images/0/train-0-0-0.png": picture(0)})
    with pytest.raises(UserError, match=r"no sample.*'picture missing': 12"):
        prepare(SourceConfig(name="nlvr", root=str(nlvr)), tmp_path / "out")


@pytest.mark.parametrize("name", ["nlvr", "flickr8k"])
def test_a_missing_root_says_which_files_are_wanted(name, tmp_path):
    first = {"nlvr": "train.json and dev.json", "flickr8k": "captions.txt, or Flickr8k.token.txt"}[name]
    (tmp_path / "empty").mkdir()
    for root, what in (
        (None, "is not given"),
        (str(tmp_path / "none"), "is not a folder"),
        (str(tmp_path / "empty"), "holds none of the files"),
    ):
        with pytest.raises(UserError, match=f"{what}.*{first}"):
            prepare(SourceConfig(name=name, root=root), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_named(nlvr, tmp_path):
    (nlvr / "dev.json").unlink()
    with pytest.raises(UserError, match=r"has no dev\.json"):
        prepare(SourceConfig(name="nlvr", root=str(nlvr)), tmp_path / "out")
    for path in nlvr.glob("*.tar"):
        path.unlink()
    (nlvr / "dev.json").touch()
    with pytest.raises(UserError, match="needs pictures, but none are below"):
        prepare(SourceConfig(name="nlvr", root=str(nlvr)), tmp_path / "out")


@pytest.mark.parametrize(
    "line",
    ["#VALUE!", "{}", '{"sentence": "a", "label": "maybe", "identifier": "1-0", "directory": "0"}',
     '{"sentence": "a", "label": "true", "identifier": "../x", "directory": "0"}', "[1]", "3"],
)  # fmt: skip
def test_a_broken_line_is_counted(nlvr, tmp_path, line):
    text = (nlvr / "train.json").read_text().splitlines()
    (nlvr / "train.json").write_text("\n".join([*text[:3], line, *text[3:]]))
    account = prepare(SourceConfig(name="nlvr", root=str(nlvr)), tmp_path / "out")
    assert (account["asked"], account["written"], account["skipped"]) == (43, 42, {"malformed record": 1})
    assert account["splits"]["train"]["skipped_keys"][0].startswith("line_4")


def test_a_truncated_picture_tar_is_named(nlvr, tmp_path):
    os.truncate(nlvr / "images-train.tar", 3000)
    with pytest.raises(UserError, match=r"images-train\.tar: truncated"):
        prepare(SourceConfig(name="nlvr", root=str(nlvr)), tmp_path / "out")


def test_captions_that_are_not_text_or_have_no_header_are_named(flickr, tmp_path):
    config = SourceConfig(name="flickr8k", root=str(flickr))
    (flickr / "captions.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        prepare(config, tmp_path / "out")
    (flickr / "captions.txt").write_text("a,b\n")
    with pytest.raises(UserError, match="nor a file of captions"):
        prepare(config, tmp_path / "out")


def test_rows_without_a_caption_are_counted(flickr, tmp_path):
    with open(flickr / "captions.txt", "ab") as file:
        file.write(b"c.jpg\n0_ab.jpg,\nlonely.jpg,\n\xff\xfe,a\n")
    config = SourceConfig(name="flickr8k", root=str(flickr), sizes={"val": 4, "test": 2})
    account = prepare(config, tmp_path / "out")
    assert account["written"] == 12
    assert account["skipped"] == {"malformed record": 2, "no caption": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": {"train": 3}}, "must be even"),
        ({"sizes": {"tain": 2}}, r"data\.sizes\.tain names no split of shapes"),
        ({"sizes": {"train": -2}}, "must not be negative"),
        ({"shard_samples": 0}, "at least 1"),
        ({"image_size": 4}, "from 16 to"),
        ({"name": "imagenet"}, "no known data set"),
    ],
)
def test_wrong_configs_are_the_users_errors(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        prepare(SourceConfig(**changes), tmp_path)


def test_shapes_are_prepared_once_and_pairs_only_where_asked_for(tmp_path):
    sizes = {"train": 20, "val": 2, "test": 4, "unseen": 2}
    config = SourceConfig(sizes=sizes, image_size=16, shard_samples=8)
    seen = []
    account = prepare(config, tmp_path, lambda done, total: seen.append((done, total)))
    assert {name: split["written"] for name, split in account["splits"].items()} == sizes
    assert seen[0] == (0, 28)
    assert seen[-1] == (28, 28)
    assert seen == sorted(seen)
    start = time.monotonic()
    assert prepare(config, tmp_path) == account
    assert time.monotonic() - start < 1
    with_pairs = dataclasses.replace(config, sizes=sizes | {"pairs": 4})
    assert prepare(with_pairs, tmp_path)["splits"]["pairs"]["written"] == 4
    assert verify_folder(tmp_path / "pairs") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs", "test", "train", "unseen", "val"]


def test_shards_that_are_there_are_linked_and_never_written_into(nlvr, tmp_path):
    made = prepare(SourceConfig(name="nlvr", root=str(nlvr)), tmp_path / "made", workers=1)
    before = contents(tmp_path / "made")
    config = SourceConfig(name="shards", root=str(tmp_path / "made"))
    for _ in range(2):
        account = prepare(config, tmp_path / "run")
        assert account["written"] == made["written"] and set(account["splits"]) == {"train", "val", "dev"}
    assert all((tmp_path / "run" / name).resolve() == tmp_path / "made" / name for name in account["splits"])
    other = SourceConfig(name="nlvr", root=str(nlvr), sizes={"train": 2})
    with pytest.raises(UserError, match="is a link to other shards"):
        prepare(other, tmp_path / "run", workers=1)
    prepare(other, tmp_path / "run", workers=1, replace_others=True)
    assert contents(tmp_path / "made") == before
    with pytest.raises(UserError, match="holds other shards"):
        prepare(config, tmp_path / "run")


def test_shards_without_an_index_or_with_a_part_missing_are_named(nlvr, tmp_path):
    with pytest.raises(UserError, match="trimline index DIR"):
        prepare(SourceConfig(name="shards", root=str(nlvr)), tmp_path / "run")
    prepare(SourceConfig(name="nlvr", root=str(nlvr)), tmp_path / "made", workers=1)
    next((tmp_path / "made/dev").glob("*.tar")).unlink()
    with pytest.raises(UserError, match=r"missing or not of the size.*trimline index"):
        prepare(SourceConfig(name="shards", root=str(tmp_path / "made")), tmp_path / "run")


def test_an_output_that_cannot_be_a_folder_is_the_users_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the folder"):
        prepare(SourceConfig(sizes={"train": 2}, image_size=16), tmp_path / "file")


def test_the_index_does_not_depend_on_where_things_lie(nlvr, tmp_path):
    prepare(SourceConfig(name="nlvr", root=str(nlvr)), tmp_path / "one")
    shutil.move(nlvr, tmp_path / "elsewhere")
    prepare(SourceConfig(name="nlvr", root=str(tmp_path / "elsewhere")), tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@needs_data
def test_the_real_nlvr(tmp_path):
    config = SourceConfig(name="nlvr", root=str(DATA), sizes={"train": 300, "val": 100, "dev": 60})
    account = prepare(config, tmp_path, workers=1)
    assert account["skipped"] == {}
    assert account["written"] == 460
    examples = [example for _, example in read_examples(DATA / "nlvr/train.json") if example]
    assert len(examples) == 12_408
    held_out = val_folders(examples)
    assert len(held_out) == 8
    assert 1000 < sum(example.directory in held_out for example in examples) < 1500
    for value in samples(tmp_path / "dev").values():
        assert (value["width"], value["height"]) == (400, 100)
    assert verify_folder(tmp_path / "dev") == []


@needs_data
def test_the_real_flickr8k(tmp_path):
    account = prepare(SourceConfig(name="flickr8k", root=str(DATA)), tmp_path, workers=1)
    assert {name: split["written"] for name, split in account["splits"].items()} == {
        "train": 800, "val": 100, "test": 100,
    }  # fmt: skip
    index, rows = load_index(tmp_path / "test")
    assert rows[:, 2].tolist() == [5] * 100
    assert index["name"] == "flickr8k/test"
