"""Data sets of tasks, and data of one's own, from small files in their formats to shards that verify."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError
from data_prep.shapes_published import write_published
from data_prep.sources import ColumnsConfig
from data_prep.sources.nlvr2 import sentence_of
from tests.data_prep.published_files import KINDS, images, jpg, shards, write
from tests.data_prep.samples import picture
from tests.data_prep.stored import store


@pytest.mark.parametrize("kind", KINDS)
def test_nlvr2(kind, tmp_path):
    def line(split: str, number: int, pair: int, sentence: int, label: str) -> dict[str, Any]:
        return {
            "identifier": f"{split}-{number}-{pair}-{sentence}", "sentence": f"s{sentence}", "label": label,
            "left_url": "http://l", "right_url": "http://r", "writer": 1, "validation": {}, "synset": "dog",
        }  # fmt: skip

    train = [line("train", 10, 0, 0, "True"), line("train", 10, 1, 0, "False"), line("train", 11, 0, 1, "True")]
    files = [write(tmp_path / "train.json", [*train, {"identifier": "x"}]),
             write(tmp_path / "test1.json", [line("test1", 0, 2, 0, "False")])]  # fmt: skip
    stems = ["train-10-0", "train-10-1", "test1-0-2"]
    pictures = images(tmp_path, kind, [f"images/{stem}-img{side}.png" for stem in stems for side in (0, 1)])
    account, found = shards(tmp_path, "nlvr2", annotations=tuple(files), images=(pictures,))
    assert account["skipped"] == {"malformed record": 1, "picture missing": 1}
    assert list(found) == ["test1", "train"]
    value = found["train"]["train-10-1-0"]
    assert value["statements"] == [{"text": "s0", "label": False}]
    assert value["captions"] == []
    # The pairs of one sentence are one group, as the corpus's metrics.py counts consistency.
    assert value["group"] == found["train"]["train-10-0-0"]["group"] == "train-10-0"
    assert value["presentation"] == "train-10"
    if kind == "folder":
        path = Path(pictures) / "images/train-10-1-img0.png"
        assert value["sha256"] and path.read_bytes() in (tmp_path / "out/train/00000.tar").read_bytes()


def test_a_cut_of_nlvr2_keeps_the_pairs_of_a_sentence_together(tmp_path):
    write_published("nlvr2", tmp_path / "raw", {"dev": 24}, 32, 3)
    lines = [json.loads(line) for line in (tmp_path / "raw/dev.json").read_text().splitlines()]
    whole = Counter(sentence_of(line["identifier"]) for line in lines)
    assert max(whole.values()) > 1
    seen = set()
    for seed in (0, 1):
        _, found = shards(tmp_path / str(seed), "nlvr2", root=str(tmp_path / "raw"), sizes={"dev": 30}, seed=seed)
        kept = Counter(sample["group"] for sample in found["dev"].values())
        assert 30 - max(whole.values()) < kept.total() <= 30
        assert all(kept[name] == whole[name] for name in kept)
        seen.add(frozenset(kept))
    assert len(seen) == 2
    _, found = shards(tmp_path / "few", "nlvr2", root=str(tmp_path / "raw"), sizes={"dev": 1})
    assert {whole[sample["group"]] for sample in found["dev"].values()} == {len(found["dev"])}, "one whole sentence"


def test_vqa(tmp_path):
    root = tmp_path / "root"
    questions = [{"image_id": n, "question": f"what {k}?", "question_id": 10 * n + k} for k in (0, 1) for n in (5, 6)]
    write(root / "v2_OpenEnded_mscoco_val2014_questions.json",
          {"info": {}, "task_type": "Open-Ended", "data_subtype": "val2014", "questions": questions})  # fmt: skip
    answers = [{"answer": "red" if k < 7 else "blue", "answer_confidence": "yes", "answer_id": k} for k in range(10)]
    write(root / "v2_mscoco_val2014_annotations.json", {"annotations": [
        {"question_id": q["question_id"], "image_id": q["image_id"], "question_type": "what", "answer_type": "other",
         "multiple_choice_answer": "red", "answers": answers} for q in questions]
        + [{"question_id": 1, "image_id": 9, "answers": []}, {"question_id": 2}]})  # fmt: skip
    test = [{"image_id": 8, "question": "and?", "question_id": 80}]
    write(root / "v2_OpenEnded_mscoco_test-dev2015_questions.json", {"questions": test})
    store(root / "val2014", "zip", {f"val2014/COCO_val2014_{n:012d}.jpg": jpg(n) for n in (5, 6)})
    store(root / "test2015", "folder", {f"COCO_test2015_{8:012d}.jpg": jpg(8)})
    account, found = shards(tmp_path, "vqa", root=str(root))
    assert account["skipped"] == {"answers without a question": 1, "malformed record": 1}
    value = found["val"]["000000000005"]
    assert [(q["question"], q["question_id"], q["answer"]) for q in value["questions"]] == [
        ("what 0?", 50, "red"), ("what 1?", 51, "red"),
    ]  # fmt: skip
    assert value["questions"][0]["answers"] == ["red"] * 7 + ["blue"] * 3
    assert value["coco_id"] == 5
    assert found["test-dev"]["000000000008"]["questions"] == [{"question": "and?", "question_id": 80}]


def test_snli_ve(tmp_path):
    def line(name: str, label: str, number: int) -> dict[str, Any]:
        return {"annotator_labels": [label], "captionID": f"{name}#0", "gold_label": label, "Flickr30K_ID": name,
                "pairID": f"{name}#0r{number}", "sentence1": "a premise", "sentence2": f"so {number}"}  # fmt: skip

    lines = [line("111", label, n) for n, label in enumerate(("entailment", "neutral", "contradiction", "-"))]
    lines += [line("222.jpg", "neutral", 9)]
    file = write(tmp_path / "snli_ve_dev.jsonl", [*lines, {}])
    pictures = images(tmp_path, "tar", ["flickr30k-images/111.jpg", "flickr30k-images/222.jpg"])
    account, found = shards(tmp_path, "snli_ve", annotations=(file,), images=(pictures,))
    assert account["skipped"] == {"malformed record": 1, "no gold label": 1}
    statements = found["dev"]["111"]["statements"]
    assert [(one["text"], one["label"], one["relation"]) for one in statements] == [
        ("so 0", True, "entailment"), ("so 1", False, "neutral"), ("so 2", False, "contradiction"),
    ]  # fmt: skip
    assert found["dev"]["222"]["captions"] == ["a premise"]


def test_nocaps_keeps_domains_and_pictures_without_captions(tmp_path):
    def image(number: int) -> dict[str, Any]:
        return {"id": number, "file_name": f"{number:016x}.jpg", "open_images_id": f"{number:016x}",
                "domain": "near-domain", "width": 8, "height": 8}  # fmt: skip

    val = {"licenses": [], "info": {}, "images": [image(0), image(1)],
           "annotations": [{"image_id": n, "id": k, "caption": "c"} for n in (0, 1) for k in range(10)]}  # fmt: skip
    test = {"images": [image(2)], "info": {}, "licenses": []}
    files = [write(tmp_path / "nocaps_val_4500_captions.json", val),
             write(tmp_path / "nocaps_test_image_info.json", test)]  # fmt: skip
    pictures = images(tmp_path, "folder", [f"{n:016x}.jpg" for n in range(3)])
    _, found = shards(tmp_path, "nocaps", annotations=tuple(files), images=(pictures,))
    value = found["val"][f"{1:016x}"]
    assert (len(value["captions"]), value["domain"], value["nocaps_id"]) == (10, "near-domain", 1)
    assert "coco_id" not in value
    assert found["test"][f"{2:016x}"]["captions"] == []


def test_albef_lists_of_every_task(tmp_path):
    far = "/export/share/datasets/vision/coco/images"
    pictures = images(tmp_path, "zip", [f"images/{name}.jpg" for name in "abcd"])
    lists = {
        "coco_karpathy_train.json": [{"image": f"{far}/a.jpg", "caption": "one", "image_id": "coco_1"},
                                     {"image": f"{far}/a.jpg", "caption": "two", "image_id": "coco_1"},
                                     {"image": f"{far}/gone.jpg", "caption": "x"}, {"caption": "x"}, 5],
        "flickr30k_test.json": [{"image": f"{far}/b.jpg", "caption": ["one", "", "three"]}],
        "vqa_val.json": [{"image": f"{far}/c.jpg", "question": "what?", "question_id": 4, "dataset": "vqa",
                          "answer": ["red", "blue", "red"]}],
        "ve_dev.json": [{"image": f"{far}/c.jpg", "sentence": "so", "label": "contradiction"},
                        {"images": [f"{far}/c.jpg", f"{far}/d.jpg"], "sentence": "both", "label": "True"}],
    }  # fmt: skip
    files = tuple(write(tmp_path / name, value) for name, value in lists.items())
    account, found = shards(tmp_path, "albef", annotations=files, images=(pictures,))
    assert account["skipped"] == {"malformed record": 2, "picture missing": 1}
    assert found["train"]["a"]["captions"] == ["one", "two"]
    assert found["test"]["b"]["captions"] == ["one", "three"]
    assert found["val"]["c"]["questions"] == [
        {"question": "what?", "question_id": 4, "answer": "red", "answers": ["red", "blue", "red"]}
    ]
    assert found["dev"]["c"]["statements"] == [{"text": "so", "label": False, "relation": "contradiction"}]
    (pair,) = (value for key, value in found["dev"].items() if key != "c")
    assert pair["statements"] == [{"text": "both", "label": True}]
    assert "presentation" not in pair and pair["id"].count("-") != 3


def test_pictures_that_are_there_to_be_captioned(tmp_path):
    """COCO's test has no captions, and BLIP's list of NoCaps has numbers alone."""
    pictures = images(tmp_path, "folder", ["a/1.jpg", "a/2.jpg"])
    info = {"images": [{"id": n, "file_name": f"{n}.jpg"} for n in (1, 2)]}
    file = write(tmp_path / "image_info_test2014.json", info)
    account, found = shards(tmp_path / "coco", "coco", annotations=(file,), images=(pictures,))
    assert account["skipped"] == {} and [one["coco_id"] for one in found["test"].values()] == [1, 2]
    lines = [{"image": "a/1.jpg", "img_id": 7}, {"image": "a/2.jpg", "img_id": 8, "caption": None}]
    file = write(tmp_path / "nocaps_val.json", lines)
    account, found = shards(tmp_path / "blip", "albef", annotations=(file,), images=(pictures,))
    assert account["skipped"] == {"no caption": 1}
    assert [(one["img_id"], one["captions"]) for one in found["val"].values()] == [(7, [])]


def test_albefs_lists_of_pairs_are_in_nlvr2s_sets(tmp_path):
    def pair(number: int, **more: str) -> dict[str, Any]:
        names = [f"nlvr2/dev/dev-850-{number}-img{side}.png" for side in (0, 1)]
        return {"images": names, "sentence": "so", "label": "True", **more}

    pictures = images(tmp_path, "folder", [f"nlvr2/dev/dev-850-{n}-img{side}.png" for n in (0, 1) for side in (0, 1)])
    named = [pair(0, identifier="dev-850-0-2"), pair(1, identifier="dev-850-1-2"), pair(1, identifier="no one's")]
    files = (write(tmp_path / "nlvr_dev.json", [pair(0), pair(0)]), write(tmp_path / "nlvr_test.json", named))
    account, found = shards(tmp_path, "albef", annotations=files, images=(pictures,))
    assert account["skipped"] == {}
    assert [value["presentation"] for split in found.values() for value in split.values()] == ["dev-850"] * 5
    assert not any("group" in value for value in found["dev"].values())
    first, other, odd = found["test"].values()
    assert (first["id"], first["group"]) == ("dev-850-0-2", "dev-850-2") and other["group"] == first["group"]
    assert "group" not in odd and " " in odd["id"]


def test_albefs_entries_may_have_both_an_image_and_images(tmp_path):
    pictures = images(tmp_path, "folder", ["a.jpg", "b.jpg", "c.jpg"])
    lines = [
        {"image": "a.jpg", "caption": "one", "images": None},
        {"image": "b.jpg", "caption": "two", "images": [1]},
        {"image": None, "images": ["b.jpg", "c.jpg"], "sentence": "both", "label": "True"},
    ]
    account, found = shards(tmp_path, "albef", annotations=(write(tmp_path / "x.json", lines),), images=(pictures,))
    assert account["skipped"] == {}
    single, other, pair = found["train"].values()
    assert (single["captions"], other["captions"]) == (["one"], ["two"])
    assert pair["statements"] == [{"text": "both", "label": True}]


def test_albef_paths_that_disagree_need_match_name(tmp_path):
    file = write(tmp_path / "vg.json", [{"image": "visual-genome/image/2.jpg", "caption": "x"}])
    pictures = images(tmp_path, "folder", ["VG_100K/2.jpg"])
    with pytest.raises(UserError, match=r"only in another folder.*match name"):
        shards(tmp_path, "albef", annotations=(file,), images=(pictures,))
    account, _ = shards(tmp_path / "2", "albef", annotations=(file,), images=(pictures,), match="name")
    assert account["written"] == 1


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_tables(kind, tmp_path):
    rows = [("a.jpg", 'say "hi", you\nthere', "train", 1.5), ("b.jpg", "b", "test", 2.5),
            ("a.jpg", "again", "train", 3.5), ("c.jpg", "", "train", 4.5), ("a.jpg", "same name", "test", 5.5),
            ("d.jpg", "d", "no/split", 1.0)]  # fmt: skip
    names = ("file", "text", "part", "score")
    path = tmp_path / f"table.{kind}"
    if kind == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        arrow = pytest.importorskip("pyarrow")
        parquet.write_table(arrow.table({name: [row[n] for row in rows] for n, name in enumerate(names)}), path)
    else:
        with open(path, "w", newline="") as file:
            csv.writer(file, delimiter="," if kind == "csv" else "\t").writerows([names, *rows])
    columns = ColumnsConfig(image="file", caption="text", split="part", keep=("score",))
    pictures = images(tmp_path, "tar", ["a.jpg", "b.jpg"])
    account, found = shards(tmp_path, "table", annotations=(str(path),), images=(pictures,), columns=columns)
    assert {split: list(of) for split, of in found.items()} == {"train": ["a"], "test": ["b", "a"]}
    assert found["train"]["a"]["captions"] == ['say "hi", you\nthere', "again"]
    assert float(found["train"]["a"]["score"]) == 1.5
    assert account["skipped"] == {"malformed record": 1, "no caption": 1}


def test_tables_without_a_header_and_with_bad_rows(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"a.jpg,one\nb.jpg\nc.jpg,x,y\n\xff\xff,z\n\nb.jpg,two\n")
    columns = ColumnsConfig(names=("image", "caption"))
    pictures = images(tmp_path, "tar", ["a.jpg", "b.jpg"])
    account, found = shards(tmp_path, "table", annotations=(f"val={path}",), images=(pictures,), columns=columns)
    assert list(found["val"]) == ["a", "b"]
    assert account["skipped"] == {"malformed record": 3}


@pytest.mark.parametrize(
    ("name", "data", "columns", "message"),
    [
        ("t.csv", b"picture,text\na,b\n", {}, r"no column 'image' but 'picture', 'text'.*--columns\.image"),
        ("t.csv", b"", {}, "is empty: its first line names no columns"),
        ("t.csv", b"image,caption\n", {}, "no record found"),
        ("t.parquet", b"PAR1 no", {}, "no whole Parquet"),
        ("t.csv", b"image,caption,key\na,b,c\n", {"keep": ("key",)}, "every sample has already"),
    ],
)
def test_tables_that_are_none(name, data, columns, message, tmp_path):
    (tmp_path / name).write_bytes(data)
    pictures = images(tmp_path, "tar", ["a.jpg"])
    with pytest.raises(UserError, match=message):
        shards(tmp_path, "table", annotations=(str(tmp_path / name),), images=(pictures,),
               columns=ColumnsConfig(**columns))  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_folder_with_texts_beside_the_pictures(kind, tmp_path):
    files = {"sub/dog.v2.jpg": jpg(0), "sub/dog.v2.txt": b"a dog\n\n two dogs \r\n", "cat.PNG": picture(1),
             "cat.txt": b"a cat", "alone.jpg": jpg(2), "empty.jpg": jpg(3), "empty.txt": b"\n",
             "notes.txt": b"no picture"}  # fmt: skip
    account, found = shards(tmp_path, "folder", images=(str(store(tmp_path / "p", kind, files)),))
    assert account["skipped"] == {"no caption": 2}
    assert {tuple(value["captions"]) for value in found["train"].values()} == {("a dog", "two dogs"), ("a cat",)}
    again, val = (str(store(tmp_path / name, kind, files)) for name in ("q", "val"))
    _, found = shards(tmp_path / "more", "folder", images=(f"train={again}", f"val={val}"))
    assert {split: len(of) for split, of in found.items()} == {"train": 2, "val": 2}


def test_the_text_of_an_archives_picture_is_never_looked_for_on_the_disk(tmp_path):
    (tmp_path / "secret.txt").write_text("a secret")
    files = {f"{tmp_path}/secret.jpg": jpg(0), "good.jpg": jpg(1), "good.txt": b"good"}
    account, found = shards(tmp_path, "folder", images=(str(store(tmp_path / "p", "tar", files)),))
    assert account["skipped"] == {"no caption": 1}
    assert [value["captions"] for value in found["train"].values()] == [["good"]]
