"""Shapes drawn into published files: they are read as the real ones are, and texts alone tell nothing."""

import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.shapes import REALMS
from data_prep.shapes_pairs import draw_quartet
from data_prep.shapes_published import write_published
from data_prep.shapes_relations import TOGETHER, draw_related, draw_two, relation
from data_prep.shapes_told import DOMAINS
from data_prep.shapes_world import HELD_OUT, Dice, draw_scene
from data_prep.sources.snli_ve import LABELS
from pipeline.data.decode import decode_image
from tests.data_prep.published_files import shards


def test_each_claim_is_entailed_once_left_open_once_and_contradicted_twice() -> None:
    for number in range(12):
        scenes, claims = draw_two(REALMS["test"], Dice(f"two/{number}"))
        assert all(REALMS["test"].has(scene) for scene in scenes)
        pictures = [(scene, grey) for scene in scenes for grey in (False, True)]
        for claim in claims:
            told = Counter(relation(claim, scene, grey=grey) for scene, grey in pictures)
            assert told == {"entailment": 1, "neutral": 1, "contradiction": 2}
        for scene, grey in pictures:
            told = Counter(relation(claim, scene, grey=grey) for claim in claims)
            assert told == {"neutral" if grey else "entailment": 1, "contradiction": 1}


def test_black_and_white_pictures_have_no_colour() -> None:
    for drawing in draw_related("val", 8, 32, 0):
        pixels = decode_image(drawing.picture).astype(int)
        spread = (pixels.max(2) - pixels.min(2)).max()
        assert (spread == 0) == ("black and white" in drawing.captions[0]) == (drawing.number % 2 == 1)


def test_snli_ve_is_written_as_published(tmp_path: Path) -> None:
    write_published("snli_ve", tmp_path / "raw", {"train": 12, "dev": 8}, 32, 3)
    lines = [json.loads(line) for line in (tmp_path / "raw/snli_ve_train.jsonl").read_text().splitlines()]
    assert len({line["pairID"] for line in lines}) == len(lines) == 24
    by_text = defaultdict[tuple[int, str], list[str]](list)
    for line in lines:
        by_text[(int(line["Flickr30K_ID"]) - 1) // TOGETHER, line["sentence2"]].append(line["gold_label"])
    assert all(sorted(labels) == sorted([*LABELS, "contradiction"]) for labels in by_text.values())
    account, found = shards(tmp_path, "snli_ve", root=str(tmp_path / "raw"))
    assert (account["written"], account["skipped"]) == (20, {})
    assert {s["relation"] for fields in found["dev"].values() for s in fields["statements"]} == set(LABELS)
    assert all(fields["captions"] for fields in found["train"].values())


def test_vqa_is_written_as_published(tmp_path: Path) -> None:
    write_published("vqa", tmp_path / "raw", {"train": 40, "val": 4, "test": 2}, 32, 3)
    account, found = shards(tmp_path, "vqa", root=str(tmp_path / "raw"))
    assert (account["written"], account["skipped"]) == (46, {})
    asked = [question for fields in found["train"].values() for question in fields["questions"]]
    assert {question["answer_type"] for question in asked} == {"number", "yes/no", "other"}
    for question in asked:
        said = Counter(question["answers"])
        assert said.total() == 10 and said.most_common(1)[0][0] == question["answer"]
        assert question["answer"].isdecimal() == (question["answer_type"] == "number")
    assert any(len(set(question["answers"])) > 1 for question in asked)
    assert not any("answer" in question for fields in found["test"].values() for question in fields["questions"])
    ids = [question["question_id"] for split in found.values() for f in split.values() for question in f["questions"]]
    assert len(set(ids)) == len(ids)


def test_nlvr2_is_written_as_published(tmp_path: Path) -> None:
    write_published("nlvr2", tmp_path / "raw", {"train": 12, "dev": 4, "test1": 2}, 32, 3)
    lines = [json.loads(line) for line in (tmp_path / "raw/train.json").read_text().splitlines()]
    by_sentence = defaultdict[str, set[str]](set)
    for line in lines:
        split, number, _, told = line["identifier"].split("-")
        by_sentence[f"{split}-{number}-{told}"].add(line["label"])
    # Each sentence is true of one pair and false of the other, so it alone tells nothing.
    assert len(lines) == 48 and len(by_sentence) == 24
    assert all(labels == {"True", "False"} for labels in by_sentence.values())
    account, found = shards(tmp_path, "nlvr2", root=str(tmp_path / "raw"))
    assert (account["written"], account["skipped"]) == (72, {})
    assert {name: len(split) for name, split in found.items()} == {"train": 48, "dev": 16, "test1": 8}
    group = Counter(fields["group"] for fields in found["dev"].values())
    assert set(group.values()) == {2} and len(group) == 8
    assert {fields["presentation"] for fields in found["dev"].values()} == {"dev-0", "dev-1"}


def test_pairs_of_a_realm_are_of_its_scenes_and_their_statements_hold_where_they_say() -> None:
    for number in range(6):
        one, other, claims = draw_quartet(Dice(f"pairs/{number}"), REALMS["val"])
        assert all(REALMS["val"].has(scene) for two in (one, other) for scene in two)
        assert sum(claim.holds(one) for claim, _ in claims) == sum(claim.holds(other) for claim, _ in claims) == 2


def test_the_same_seed_draws_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_published("vqa", tmp_path / name, {"val": 4}, 32, 5)
    files = {path.relative_to(tmp_path / "one"): path.read_bytes() for path in (tmp_path / "one").rglob("*.*")}
    assert len(files) == 6
    assert all((tmp_path / "other" / name).read_bytes() == data for name, data in files.items())


def test_what_cannot_be_drawn_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    for said, name, out, sizes, side in [
        ("has no split 'dev'", "vqa", "a", {"dev": 4}, 32),
        ("train=5 must be a multiple of 2", "vqa", "a", {"train": 5}, 32),
        ("dev=0 must be a multiple of 4", "snli_ve", "a", {"dev": 0}, 32),
        ("image_size=8 must be", "vqa", "a", {"train": 4}, 8),
        ("is not an empty folder", "vqa", "full", {"train": 4}, 32),
    ]:
        with pytest.raises(UserError, match=said):
            write_published(name, tmp_path / out, sizes, side, 0)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "mine"]


def test_captions_are_written_as_published(tmp_path: Path) -> None:
    write_published("coco", tmp_path / "raw", {"train": 4, "val": 3}, 32, 3)
    account, found = shards(tmp_path, "coco", root=str(tmp_path / "raw"))
    assert (account["written"], account["skipped"]) == (7, {})
    assert {len(fields["captions"]) for split in found.values() for fields in split.values()} == {5}
    told = json.loads((tmp_path / "raw" / "captions_val2014.json").read_text())
    assert sorted(image["id"] for image in told["images"]) == sorted({one["image_id"] for one in told["annotations"]})


def test_nocaps_is_written_as_published_with_looks_that_training_has_not(tmp_path: Path) -> None:
    write_published("nocaps", tmp_path / "raw", {"val": 6}, 32, 3)
    account, found = shards(tmp_path, "nocaps", root=str(tmp_path / "raw"))
    assert (account["written"], account["skipped"]) == (6, {})
    domains = Counter(fields["domain"] for fields in found["val"].values())
    assert domains == dict.fromkeys(DOMAINS, 2)
    for domain, novel in (("in-domain", False), ("out-domain", True)):
        scene = draw_scene(DOMAINS[domain], Dice("scene"))
        assert {shape.look in HELD_OUT for shape in scene} == {novel}


def test_flickr30k_is_written_as_karpathys_file(tmp_path: Path) -> None:
    counted: list[int] = []
    write_published("flickr30k", tmp_path / "raw", {"train": 3, "val": 2, "test": 2}, 32, 3, counted.append)
    told = json.loads((tmp_path / "raw" / "dataset_flickr30k.json").read_text())
    assert sum(counted) == 7 and list(told) == ["images", "dataset"] and told["dataset"] == "flickr30k"
    assert [image["imgid"] for image in told["images"]] == list(range(7))
    sentences = [(image, sentence) for image in told["images"] for sentence in image["sentences"]]
    assert [sentence["sentid"] for _, sentence in sentences] == list(range(35))
    for image, sentence in sentences:
        assert image.keys() == {"sentids", "imgid", "sentences", "split", "filename"}
        assert sentence.keys() == {"tokens", "raw", "imgid", "sentid"} and sentence["imgid"] == image["imgid"]
        assert sentence["sentid"] in image["sentids"] and len(image["sentids"]) == 5
        plain = "".join(one for one in sentence["raw"].lower() if one.isalnum() or one == " ")
        assert sentence["tokens"] == plain.split() and sentence["raw"][0].isupper()
    names = {image["filename"] for image in told["images"]}
    assert names == {path.name for path in (tmp_path / "raw" / "flickr30k-images").iterdir()} and len(names) == 7
    account, found = shards(tmp_path, "flickr30k", root=str(tmp_path / "raw"))
    assert (account["written"], account["skipped"]) == (7, {})
    assert {split: len(of) for split, of in found.items()} == {"train": 3, "val": 2, "test": 2}
    assert len({fields["flickr_id"] for of in found.values() for fields in of.values()}) == 7


def test_a_split_of_flickr30k_is_the_same_whatever_is_drawn_beside_it(tmp_path: Path) -> None:
    for name, sizes in (("one", {"test": 2}), ("other", {"train": 3, "test": 4})):
        write_published("flickr30k", tmp_path / name, sizes, 32, 5)
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "one/flickr30k-images").iterdir()}
    assert len(pictures) == 2
    for name, data in pictures.items():
        assert (tmp_path / "other/flickr30k-images" / name).read_bytes() == data
