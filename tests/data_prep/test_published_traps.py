"""What real files, folders and command lines have in store beyond the formats as they are described."""

import csv
import json
import tracemalloc
from collections import deque
from pathlib import Path

import pytest

from data_prep.clean import CleanConfig
from data_prep.entries import with_suffix
from data_prep.errors import UserError
from data_prep.exclusion import write_exclusions
from data_prep.sources import ColumnsConfig, SourceConfig, prepare, source_module
from data_prep.sources.published import Annotation, Request
from data_prep.sources.url_lists import SBU
from tests.data_prep.published_files import coco_json, images, img2dataset_files, jpg, karpathy, region, shards, write
from tests.data_prep.samples import picture
from tests.data_prep.stored import store


def downloads(tmp_path: Path, parts: list[str]) -> list[str]:
    """Folders with a shard 00000.tar each, as img2dataset calls its first; the pictures are other ones."""
    out = []
    for number, part in enumerate(parts):
        folder = tmp_path / part
        folder.mkdir(parents=True)
        files = img2dataset_files({f"http://x.org/{part}/{n}": f"{part} {n}" for n in range(2)})
        store(folder / "00000", "tar", {k: jpg(50 + number) if k.endswith(".jpg") else v for k, v in files.items()})
        out.append(str(folder))
    return out


def test_shards_of_one_name_from_several_downloads_are_all_taken(tmp_path):
    folders = downloads(tmp_path, ["one", "two"])
    account, found = shards(tmp_path, "img2dataset", images=tuple(folders))
    assert (account["asked"], account["written"]) == (4, 4)
    assert {value["captions"][0] for value in found["train"].values()} == {"one 0", "one 1", "two 0", "two 1"}


@pytest.mark.parametrize("name", ["img2dataset", "cc3m"])
def test_downloads_of_several_splits_are_never_all_taken_for_train(name, tmp_path):
    downloads(tmp_path / "all", ["train", "val"])
    with pytest.raises(UserError, match=r"several splits: give --images train=.*all/train val=.*all/val"):
        shards(tmp_path, name, images=(str(tmp_path / "all"),))
    told = tuple(f"{part}={tmp_path}/all/{part}" for part in ("train", "val"))
    _, found = shards(tmp_path, name, images=told)
    assert {split: len(of) for split, of in found.items()} == {"train": 2, "val": 2}


def test_part_of_a_url_list_below_a_root_is_not_passed_over(tmp_path):
    downloads(tmp_path, ["train"])
    write(tmp_path / "Validation_GCC-1.1.0-Validation.tsv", "two\thttp://x.org/1\n")
    with pytest.raises(UserError, match=r"has no Train_GCC-training\.tsv"):
        shards(tmp_path, "cc3m", root=str(tmp_path))


def test_sbus_arrays_are_never_held(tmp_path):
    count = 40_000
    value = {"image_urls": [f"http://x.org/{n:0100d}" for n in range(count)], "user_ids": ["u"] * count,
             "captions": [f"{n:0100d}" for n in range(count)]}  # fmt: skip
    path = Path(write(tmp_path / "sbu-captions-all.json", value))
    del value
    config = SourceConfig(name="sbu", annotations=(str(path),))
    request = Request(files=(Annotation(path=path),), stores=(), store_splits=(), config=config)
    tracemalloc.start()
    last = deque(SBU.read(request), maxlen=1)[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert last.captions == [f"{count - 1:0100d}"]
    assert peak < 12 << 20  # two windows of a file of 10 MiB, whatever its length


def test_millions_of_pictures_of_one_name_have_keys_of_their_own():
    # With 32 bits of a hash, the first two of these that meet come after some 77,000 names.
    assert len({with_suffix("cover", f"{number}/cover.jpg") for number in range(300_000)}) == 300_000


@pytest.mark.parametrize("side", [8, 6])
def test_pictures_that_were_made_smaller_can_be_made_smaller_again(side, tmp_path):
    files = {"a.jpg": picture(0, 64, ".jpg"), "a.txt": b"a"}
    first = tmp_path / "first"
    given = str(store(tmp_path / "p", "folder", files))
    prepare(SourceConfig(name="folder", images=(given,), max_side=8), first, workers=1)
    _, found = shards(tmp_path, "img2dataset", images=(str(first / "train"),), max_side=side)
    value = found["train"]["a"]
    assert value["width"] == side
    assert value["originals"]["image"]["width"] == 64


def test_columns_of_others_named_as_our_own_are_no_error(tmp_path):
    value = {"url": "http://x", "originals": ["mine"], "changed": 5}
    files = {"0.jpg": picture(0, 64, ".jpg"), "0.txt": b"a", "0.json": json.dumps(value).encode()}
    (tmp_path / "got").mkdir()
    store(tmp_path / "got" / "00000", "tar", files)
    _, found = shards(tmp_path, "img2dataset", images=(str(tmp_path / "got"),))
    assert found["train"]["0"]["originals"] == ["mine"]
    assert write_exclusions([tmp_path / "got"], tmp_path / "list.txt")["checksums"] == 1


def test_nulls_of_parquet_are_neither_a_split_nor_an_id(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = {"image": ["a.jpg", "b.jpg", "c.jpg"], "caption": ["a", "b", "c"], "part": ["train", "train", None],
             "id": [None, None, "c"]}  # fmt: skip
    parquet.write_table(arrow.table(table), tmp_path / "t.parquet")
    account, found = shards(
        tmp_path, "table", annotations=(str(tmp_path / "t.parquet"),), columns=ColumnsConfig(split="part", id="id"),
        images=(images(tmp_path, "tar", ["a.jpg", "b.jpg", "c.jpg"]),),
    )  # fmt: skip
    assert {split: list(of) for split, of in found.items()} == {"train": ["a", "b"]}
    assert account["skipped"] == {"malformed record": 1}


def test_lists_of_pairs_of_one_name_are_not_mixed(tmp_path):
    files = [
        write(
            tmp_path / part / "nlvr_test.json",
            [{"images": [f"{part}.jpg", "z.jpg"], "sentence": part, "label": "True"}],
        )
        for part in ("a", "b")
    ]
    pictures = images(tmp_path, "tar", ["a.jpg", "b.jpg", "z.jpg"])
    _, found = shards(tmp_path, "albef", annotations=tuple(files), images=(pictures,))
    assert [[one["text"] for one in value["statements"]] for value in found["test"].values()] == [["a"], ["b"]]


def test_albefs_lists_keep_what_they_call_a_picture(tmp_path):
    name = "val2014/COCO_val2014_000000522418.jpg"
    file = write(tmp_path / "coco_train.json", [{"image": name, "caption": "x", "image_id": "coco_522418"}])
    _, found = shards(tmp_path, "albef", annotations=(file,), images=(images(tmp_path, "tar", [name]),))
    (value,) = found["train"].values()
    assert (value["image_id"], value["coco_id"]) == ("coco_522418", 522418)


def test_empty_lines_of_flickr8ks_captions_are_no_records(tmp_path):
    file = write(tmp_path / "captions.txt", "image,caption\n1.jpg,one\n\n2.jpg,two\n3.jpg,three\n\n")
    pictures = images(tmp_path, "tar", ["1.jpg", "2.jpg", "3.jpg"])
    account, _ = shards(
        tmp_path, "flickr8k", annotations=(file,), images=(pictures,), sizes={"val": 1, "test": 1}
    )  # fmt: skip
    assert (account["asked"], account["skipped"]) == (3, {})


def test_snli_ves_older_files_name_the_picture_otherwise(tmp_path):
    line = {"Flikr30kID": "111.jpg", "gold_label": "neutral", "sentence1": "a", "sentence2": "b", "pairID": "p"}
    file = write(tmp_path / "snli_ve_test.jsonl", [line])
    pictures = images(tmp_path, "tar", ["flickr30k-images/111.jpg"])
    _, found = shards(tmp_path, "snli_ve", annotations=(file,), images=(pictures,))
    assert found["test"]["111"]["flickr_id"] == "111"


def test_nlvr2s_second_test_set_is_found(tmp_path):
    root = tmp_path / "root"
    line = {"identifier": "test2-189-0-0", "sentence": "s", "label": "True"}
    write(root / "data/test2.json", json.dumps(line) + "\n")
    store(root / "test2", "folder", {f"test2-189-0-img{side}.png": jpg(side) for side in (0, 1)})
    _, found = shards(tmp_path, "nlvr2", root=str(root))
    assert list(found["test2"]) == ["test2-189-0-0"]


def test_vqas_test_pictures_of_2017_are_found_below_a_root(tmp_path):
    root = tmp_path / "root"
    questions = [{"image_id": 8, "question": "and?", "question_id": 80}]
    write(root / "v2_OpenEnded_mscoco_test2015_questions.json", {"questions": questions})
    store(root / "test2017", "zip", {f"test2017/{8:012d}.jpg": jpg(8)})
    _, found = shards(tmp_path, "vqa", root=str(root))
    assert list(found["test"]) == [f"{8:012d}"]


def test_what_belongs_to_a_caption_goes_with_it(tmp_path):
    value = coco_json([1])
    value["annotations"][0]["caption"] = "x"
    file = write(tmp_path / "captions_val2017.json", value)
    more = {"images": (images(tmp_path, "tar", [f"{1:012d}.jpg", "1.jpg"]),), "clean": CleanConfig(min_caption=6)}
    _, found = shards(tmp_path, "coco", annotations=(file,), **more)
    (sample,) = found["val"].values()
    assert (sample["captions"], sample["caption_ids"]) == (["1 says 1."], [101])
    regions = write(tmp_path / "region_descriptions.json", [
        {"id": 1, "regions": [region("cat", 50, 60, 1), region("a large cat", 70, 80, 2)]}])  # fmt: skip
    known = write(tmp_path / "image_data.json", [{"image_id": 1, "width": 99, "height": 99}])
    _, found = shards(tmp_path / "vg", "vg", annotations=(regions, known), **more)
    assert [(v["captions"], v["regions"]) for v in found["train"].values()] == [(["a large cat"], [[3, 2, 70, 80]])]


def test_a_folder_below_home_is_where_the_tables_go(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "captions_train2017.json", coco_json([1]))
    pictures = images(tmp_path, "tar", [f"{1:012d}.jpg"])
    config = {"name": "coco", "annotations": (file,), "images": (pictures,)}
    assert prepare(SourceConfig(**config), "~/out", workers=1)["written"] == 1
    assert prepare(SourceConfig(**config, cache="~/cache"), "~/more", workers=1)["written"] == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["cache", "more", "out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train"]


def test_hidden_files_below_a_root_are_none_of_the_published(tmp_path):
    write(tmp_path / "t.csv", "image,caption\na.jpg,a\n")
    (tmp_path / "._t.csv").write_bytes(b"\0\5\x16\7Mac OS X")
    store(tmp_path / "images", "folder", {"a.jpg": jpg(0)})
    account, _ = shards(tmp_path, "table", root=str(tmp_path))
    assert account["written"] == 1


def test_karpathys_flickr30k_as_a_table(tmp_path):
    rows = [("1.jpg", "train", ['He said "hi", then left.', "two"]), ("2.jpg", "test", ["three"]),
            ("3.jpg", "val", ["four"]), ("5.jpg", "val", [])]  # fmt: skip
    file = tmp_path / "root/flickr_annotations_30k.csv"
    file.parent.mkdir()
    with open(file, "w", newline="") as out:
        table = csv.writer(out)
        table.writerow(["raw", "sentids", "split", "filename", "img_id"])
        for number, (name, split, texts) in enumerate(rows):
            table.writerow([json.dumps(texts), json.dumps(list(range(len(texts)))), split, name, number])
        out.write('not a list,"[0]",train,4.jpg,4\n\nhalf a row\n')
    store(tmp_path / "root/flickr30k-images", "zip", {f"flickr30k-images/{n}.jpg": jpg(n) for n in (1, 2, 3)})
    account, found = shards(tmp_path, "flickr30k", root=str(tmp_path / "root"))
    assert account["skipped"] == {"malformed record": 1, "no caption": 2}
    value = found["train"]["1"]
    assert value["captions"] == ['He said "hi", then left.', "two"]
    assert (value["sentids"], value["imgid"], value["flickr_id"], value["karpathy_split"]) == ([0, 1], 0, "1", "train")
    assert list(found["test"]) == ["2"]


def test_splits_of_karpathys_that_are_no_text_are_malformed(tmp_path):
    value = karpathy("coco", {"1.jpg": "val", "2.jpg": "val"}, cocoid=lambda n: n)
    value["images"][0]["split"] = []
    file = write(tmp_path / "dataset_coco.json", value)
    account, _ = shards(
        tmp_path,
        "coco",
        annotations=(file,),
        images=(images(tmp_path, "tar", ["2.jpg"]),),
        sizes={"train": 0, "test": 0},
    )
    assert (account["written"], account["skipped"]) == (1, {})


def test_values_nested_almost_too_deep_are_the_users_error(tmp_path):
    pictures = images(tmp_path, "tar", ["1.jpg"])
    ends = set()
    # Somewhere in between they can be read at first, and no more when they are read again.
    for depth in range(900, 1000, 1):
        text = f'{{"images": [{{"id": 2, "file_name": "2.jpg", "deep": {"[" * depth}{"]" * depth}}}, {{"id": 1}}]}}'
        file = write(tmp_path / "captions_train2017.json", text)
        config = SourceConfig(name="coco", annotations=(file,), images=(pictures,), cache=str(tmp_path / "cache"))
        with pytest.raises(UserError) as caught:
            source_module("coco").plan(config)["train"].load()
        ends.add("nested too deep" in str(caught.value))
    assert ends == {True, False}


def test_shards_in_hidden_folders_are_not_finished(tmp_path):
    given = str(store(tmp_path / "p", "folder", {"a.jpg": jpg(0), "a.txt": b"a"}))
    prepare(SourceConfig(name="folder", images=(given,)), tmp_path / "all", workers=1)
    (tmp_path / "all/.download-val").mkdir()
    (tmp_path / "all/train").rename(tmp_path / "all/.download-val/shards")
    prepare(SourceConfig(name="folder", images=(given,)), tmp_path / "all", workers=1)
    assert list(source_module("shards").plan(SourceConfig(name="shards", root=str(tmp_path / "all")))) == ["train"]


@pytest.mark.parametrize("wrong", [True, 3, "x", {"raw": "x"}, None])
def test_lists_that_are_none_say_nothing(wrong, tmp_path):
    value = karpathy("coco", {"1.jpg": "val", "2.jpg": "val"}, cocoid=lambda n: n)
    value["images"][1]["sentences"] = wrong
    file = write(tmp_path / "dataset_coco.json", value)
    more = {"images": (images(tmp_path, "tar", ["1.jpg"]),)}
    account, _ = shards(tmp_path, "coco", annotations=(file,), sizes={"train": 0, "test": 0}, **more)
    assert account["skipped"] == {"no caption": 1}
    asked = {"questions": [{"image_id": 1, "question": "q", "question_id": 1}]}
    told = {"annotations": [{"image_id": 1, "question_id": 1, "multiple_choice_answer": "a", "answers": wrong}]}
    files = [write(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json", asked),
             write(tmp_path / "v2_mscoco_val2014_annotations.json", told)]  # fmt: skip
    more = {"images": (images(tmp_path, "tar", [f"{1:012d}.jpg"]),)}
    _, found = shards(tmp_path / "vqa", "vqa", annotations=tuple(files), **more)
    assert found["val"][f"{1:012d}"]["questions"][0]["answers"] == []
