"""Every data set from small files in its published format, written here, to shards that verify."""

from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.sources import SOURCES, RegionsConfig, SourceConfig, prepare, source_module
from tests.data_prep.published_files import (
    KINDS,
    coco_json,
    images,
    img2dataset_files,
    jpg,
    karpathy,
    region,
    shards,
    write,
)  # fmt: skip
from tests.data_prep.samples import contents
from tests.data_prep.stored import store
from tests.data_prep.test_sources import DATA, needs_data, samples


@pytest.mark.parametrize("kind", KINDS)
def test_coco_raw(kind, tmp_path):
    files = [write(tmp_path / f"captions_{part}2017.json", coco_json(ids)) for part, ids in
             (("train", [3, 1, 2]), ("val", [7]))]  # fmt: skip
    pictures = images(tmp_path, kind, [f"{folder}2017/{n:012d}.jpg" for folder, n in
                                       (("train", 1), ("train", 2), ("train", 3), ("val", 7))])  # fmt: skip
    account, found = shards(tmp_path, "coco", annotations=tuple(files), images=(pictures,))
    assert account["written"] == 4
    assert list(found["train"]) == ["000000000003", "000000000001", "000000000002"]
    value = found["val"]["000000000007"]
    assert (value["captions"], value["coco_id"], value["caption_ids"]) == (["7 says 0.", "7 says 1."], 7, [700, 701])


def test_coco_faults_are_counted(tmp_path):
    value = coco_json([1, 2, 3, 4])
    value["images"].append(value["images"][0])  # twice
    value["images"][2].pop("file_name")
    value["annotations"] = [one for one in value["annotations"] if one["image_id"] != 2]
    value["annotations"] += [
        {"image_id": 2, "id": 5, "caption": "  "}, {"image_id": 99, "id": 6, "caption": "x"}, {"id": 7}, 3,
        {"image_id": 1, "id": 8, "caption": None},
    ]  # fmt: skip
    file = write(tmp_path / "captions_train2017.json", value)
    pictures = images(tmp_path, "folder", ["000000000001.jpg"])
    account, found = shards(tmp_path, "coco", annotations=(file,), images=(pictures,))
    assert account["skipped"] == {
        "malformed record": 3, "repeated record": 1, "no caption": 1, "picture missing": 1,
        "caption of a picture that is not listed": 1,
    }  # fmt: skip
    assert (account["asked"], account["written"]) == (8, 1)
    assert found["train"]["000000000001"]["captions"] == ["1 says 0.", "1 says 1."]


@pytest.mark.parametrize("release", ["2014", "2017"])
def test_karpathys_coco_is_found_among_the_pictures_of_either_release(release, tmp_path):
    parts = {f"COCO_val2014_{n:012d}.jpg": split for n, split in enumerate(["test", "restval", "train", "val"])}
    value = karpathy("coco", parts, cocoid=lambda n: n, filepath=lambda n: "val2014")
    write(tmp_path / "root/annotations/dataset_coco.json", value)
    names = parts if release == "2014" else [f"{n:012d}.jpg" for n in range(4)]
    files = {f"val{release}/{name}": jpg(n) for n, name in enumerate(names)}
    store(tmp_path / f"root/val{release}", "zip", files)
    account, found = shards(tmp_path, "coco", root=str(tmp_path / "root"))
    assert account["written"] == 4
    assert {split: list(of) for split, of in found.items()} == {
        "train": ["000000000001", "000000000002"], "val": ["000000000003"], "test": ["000000000000"],
    }  # fmt: skip
    value = found["train"]["000000000001"]
    assert (value["karpathy_split"], value["coco_id"], value["imgid"], value["sentids"]) == ("restval", 1, 1, [2, 3])


def test_karpathys_flickr30k_and_the_original_captions_agree(tmp_path):
    names = [f"10000{n}.jpg" for n in range(4)]
    splits = dict(zip(names, ["train", "val", "test", "train"], strict=True))
    pictures = images(tmp_path, "tar", [f"flickr30k-images/{name}" for name in names])
    json_file = write(tmp_path / "dataset_flickr30k.json", karpathy("flickr30k", splits))
    token = write(
        tmp_path / "results_20130124.token", "".join(f"{name}#{k}\t{name} {k}\n" for k in (0, 1) for name in names)
    )
    table = write(
        tmp_path / "results.csv",
        "image_name| comment_number| comment\n" + "".join(f"{n}| {k}| {n} {k}\n" for n in names for k in (0, 1)),
    )
    lists = [
        write(tmp_path / f"{part}.txt", "".join(f"{n[:-4]}\n" for n in names if splits[n] == part))
        for part in ("train", "val", "test")
    ]
    told = {}
    for form, files in (("json", [json_file]), ("token", [token, *lists]), ("csv", [table, *lists])):
        _, found = shards(tmp_path / form, "flickr30k", annotations=tuple(files), images=(pictures,))
        told[form] = {s: {k: (v["captions"], v["flickr_id"]) for k, v in of.items()} for s, of in found.items()}
        assert list(found["train"]) == ["100000", "100003"]
    assert told["json"] == told["token"] == told["csv"]
    _, found = shards(tmp_path / "alone", "flickr30k", annotations=(token,), images=(pictures,))
    assert {split: len(of) for split, of in found.items()} == {"train": 4}


def test_flickr8ks_original_files(tmp_path):
    root = tmp_path / "root"
    lines = [f"{n}_ab.jpg#{k}\tA dog {k} ." for n in range(4) for k in range(5)]
    lines += ["2258277193_586949ec62.jpg.1#0\tpeople waiting", "broken line", "9_ab.jpg#0\t  "]
    write(root / "Flickr8k_text/Flickr8k.token.txt", "\n".join(lines))
    for part, numbers in (("train", [0, 1]), ("dev", [2]), ("test", [3, 8, 9])):
        write(root / f"Flickr8k_text/Flickr_8k.{part}Images.txt", "".join(f"{n}_ab.jpg\n" for n in numbers))
    store(root / "Flicker8k_Dataset", "folder", {f"{n}_ab.jpg": jpg(n) for n in range(4)})
    account, found = shards(tmp_path, "flickr8k", root=str(root))
    assert {split: list(of) for split, of in found.items()} == {
        "train": ["0_ab", "1_ab"], "val": ["2_ab"], "test": ["3_ab"],
    }  # fmt: skip
    assert account["skipped"] == {"malformed record": 1, "no caption": 2}
    assert len(found["test"]["3_ab"]["captions"]) == 5


def test_visual_genome_filters_regions_by_size_and_count(tmp_path):
    root = tmp_path / "root"
    first = [region(f"thing {n}", 50 + n, 50, n) for n in range(6)]
    first += [region("tiny", 10, 400, 8), region("Thing 5", 200, 200, 9), region(" ", 99, 99, 10), "no region"]
    regions = [{"regions": first, "id": 1}, {"regions": [region("small", 20, 20, 11)], "id": 2},
               {"regions": [], "id": 3}, {"regions": [region("lost", 99, 99, 12)], "id": 4}, {"id": 5}]  # fmt: skip
    write(root / "region_descriptions.json", regions)
    known = [{"image_id": n, "width": 100, "height": 100, "url": f"https://x/VG_100K/{n}.jpg", "coco_id": coco,
              "flickr_id": flickr} for n, coco, flickr in ((1, 77, 88), (2, None, None), (3, None, None))]  # fmt: skip
    write(root / "image_data.json", known)
    store(root / "VG_100K", "folder", {"1.jpg": jpg(1)})
    store(root / "VG_100K_2", "folder", {"2.jpg": jpg(2)})
    account, found = shards(tmp_path, "vg", root=str(root), regions=RegionsConfig(max_count=4))
    assert account["skipped"] == {
        "malformed record": 1, "no caption": 1, "no region is left by the filter": 1,
        "regions of a picture that is not listed": 1,
    }  # fmt: skip
    value = found["train"]["vg1"]
    assert value["captions"] == ["thing 2", "thing 3", "thing 4", "thing 5"]
    assert (value["coco_id"], value["flickr_id"], value["regions"][0]) == (77, "88", [3, 2, 52, 50])
    loose = RegionsConfig(min_side=0, max_count=0)
    _, found = shards(tmp_path / "all", "vg", root=str(root), regions=loose)
    assert found["train"]["vg2"]["captions"] == ["small"]
    assert len(found["train"]["vg1"]["captions"]) == 7


URLS = {f"http://x.org/{n}.jpg?a=b": f'a "quoted, {n}' for n in range(5)}
LISTS = {
    "cc3m": lambda rows: {"Train_GCC-training.tsv": "".join(f"{c}\t{u}\n" for u, c in rows)},
    "cc12m": lambda rows: {"cc12m.tsv": "".join(f"{u}\t{c}\n" for u, c in rows)},
    "sbu": lambda rows: {
        "sbu-captions-all.json": {
            "image_urls": [u for u, _ in rows], "user_ids": ["x"] * len(rows), "captions": [c for _, c in rows],
        }
    },
    "sbu-text": lambda rows: {
        "SBU_captioned_photo_dataset_urls.txt": "".join(f"{u}\n" for u, _ in rows),
        "SBU_captioned_photo_dataset_captions.txt": "".join(f"{c}\n" for _, c in rows),
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", ["tar", "folder"])
@pytest.mark.parametrize("name", LISTS)
def test_url_lists_meet_what_img2dataset_got(name, kind, tmp_path):
    rows = [*URLS.items(), ("http://x.org/gone.jpg", "gone"), ("http://x.org/0.jpg", " "), ("no url", "x")]
    files = [write(tmp_path / file, value) for file, value in LISTS[name](rows).items()]
    (tmp_path / "got").mkdir()
    where = tmp_path / "got" / ("00000" if kind == "tar" else "files")
    store(where, kind, img2dataset_files(dict(list(URLS.items())[1:])))
    source = name.partition("-")[0]
    account, found = shards(tmp_path, source, annotations=tuple(files), images=(str(tmp_path / "got"),))
    assert (account["asked"], account["written"]) == (8, 4)
    assert account["skipped"] == {"picture missing": 2, "no caption": 1, "malformed record": 1}
    assert list(found["train"]) == [f"{source}-{n:08d}" for n in range(1, 5)]
    value = found["train"][f"{source}-00000003"]
    assert (value["captions"], value["url"]) == (['a "quoted, 3'], "http://x.org/3.jpg?a=b")
    account, found = shards(tmp_path / "alone", source, images=(str(tmp_path / "got"),))
    assert (account["asked"], account["written"]) == (4, 4)
    value = found["train"]["000000002"]
    assert (value["source"], value["captions"], value["url"]) == (source, ['a "quoted, 3'], "http://x.org/3.jpg?a=b")


def test_cc3ms_validation_list_is_val_and_is_found_under_a_root(tmp_path):
    root = tmp_path / "root"
    write(root / "Train_GCC-training.tsv", "one\thttp://x.org/0\n")
    write(root / "Validation_GCC-1.1.0-Validation.tsv", "two\thttp://x.org/1\n")
    store(root / "00000", "tar", img2dataset_files({"http://x.org/0": "", "http://x.org/1": ""}))
    _, found = shards(tmp_path, "cc3m", root=str(root))
    assert {split: [v["captions"] for v in of.values()] for split, of in found.items()} == {
        "train": [["one"]], "val": [["two"]],
    }  # fmt: skip


def test_url_lists_without_urls_beside_the_pictures_are_refused(tmp_path):
    file = write(tmp_path / "cc12m.tsv", "http://x.org/0\tone\n")
    with pytest.raises(UserError, match=r"no KEY\.json with a url"):
        shards(tmp_path, "cc12m", annotations=(file,), images=(images(tmp_path, "tar", ["0.jpg"]),))


def test_img2dataset_shards_of_several_splits(tmp_path):
    for part, count in (("train", 3), ("val", 2)):
        for shard in range(2):
            (tmp_path / part).mkdir(exist_ok=True)
            store(tmp_path / part / f"{shard:05d}", "tar", img2dataset_files(dict(list(URLS.items())[:count])))
    account, found = shards(tmp_path, "img2dataset", images=(f"train={tmp_path}/train", f"val={tmp_path}/val"))
    # Keys of one shard occur in the next one too: they get a suffix.
    assert {split: len(of) for split, of in found.items()} == {"train": 6, "val": 4}
    assert account["written"] == 10
    assert {value["id"] for value in found["val"].values()} == {
        "00000/000000000", "00000/000000001", "00001/000000000", "00001/000000001",
    }  # fmt: skip
    value = next(iter(found["val"].values()))
    assert value["original_width"] == 16 and value["similarity"] is None and "exif" not in value


def test_two_downloads_into_one_split_lose_no_sample(tmp_path):
    # Every download begins with shard 00000 and key 000000000.
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        files = img2dataset_files(URLS)
        store(tmp_path / part / "00000", "tar", {name: data + part.encode() for name, data in files.items()})
    account, found = shards(tmp_path, "img2dataset", images=(str(tmp_path / "a"), str(tmp_path / "b")))
    assert account["written"] == 2 * len(URLS)
    assert len({value["id"] for value in found["train"].values()}) == 2 * len(URLS)


def test_pictures_that_change_their_split_are_written_anew(tmp_path):
    stores = [store(tmp_path / name, "folder", {f"{name}.jpg": jpg(1), f"{name}.txt": name.encode()}) for name in "ab"]
    for splits, wanted in (
        (("train", "val"), {"train": ["a"], "val": ["b"]}),
        (("val", "train"), {"train": ["b"], "val": ["a"]}),
        (("train", "train"), {"train": ["a", "b"], "val": ["a"]}),  # val is what was there before
    ):
        given = tuple(f"{split}={path}" for split, path in zip(splits, stores, strict=True))
        prepare(SourceConfig(name="folder", images=given, shuffle=False), tmp_path / "out", workers=1)
        assert {split: list(samples(tmp_path / "out" / split)) for split in ("train", "val")} == wanted


def test_a_folder_that_is_renamed_so_that_paths_agree_is_read_anew(tmp_path):
    file = write(tmp_path / "mine.json", [{"image": "good/a.jpg", "caption": "x"}, {"image": "b.jpg", "caption": "y"}])
    for name, written in (("wrong", 1), ("good", 2)):
        where = store(tmp_path / name, "folder", {"a.jpg": jpg(1), "b.jpg": jpg(2)})
        config = SourceConfig(name="albef", annotations=(file,), images=(str(where),))
        assert prepare(config, tmp_path / "out", workers=1)["written"] == written


def test_sizes_cut_a_split_by_seed_and_zero_leaves_it_out(tmp_path):
    files = [write(tmp_path / f"captions_{part}2017.json", coco_json(list(range(20)))) for part in ("train", "val")]
    more = {"annotations": tuple(files), "images": (images(tmp_path, "tar", [f"{n:012d}.jpg" for n in range(20)]),)}
    _, one = shards(tmp_path / "1", "coco", sizes={"train": 6, "val": 0, "test": 0}, **more)
    _, same = shards(tmp_path / "2", "coco", sizes={"train": 6, "val": 0}, **more)
    _, other = shards(tmp_path / "3", "coco", sizes={"train": 6, "val": 0}, seed=1, **more)
    assert list(one) == ["train"]
    assert len(one["train"]) == 6
    assert one == same != other
    with pytest.raises(UserError, match=r"data\.sizes\.test names no split of coco; it has train, val"):
        shards(tmp_path / "4", "coco", sizes={"test": 6}, **more)


def test_several_processes_read_the_same_tables(tmp_path):
    file = write(tmp_path / "captions_train2017.json", coco_json(list(range(40))))
    pictures = images(tmp_path, "deflated", [f"{n:012d}.jpg" for n in range(40)])
    config = SourceConfig(name="coco", annotations=(file,), images=(pictures,), shard_samples=7)
    prepare(config, tmp_path / "one", workers=1)
    prepare(config, tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_cache_of_the_users_stays(tmp_path):
    file = write(tmp_path / "captions_train2017.json", coco_json([1]))
    pictures = images(tmp_path, "tar", [f"{1:012d}.jpg"])
    _, found = shards(tmp_path, "coco", annotations=(file,), images=(pictures,), cache=str(tmp_path / "cache"))
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert list(found["train"]) == [f"{1:012d}"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"captions_train2017.json": b"[1, 2"}, "is not whole JSON"),
        ({"captions_train2017.json": b"\x89PNG\r\n\x1a\n\0\0"}, "is not UTF-8 text"),
        ({"captions_train2017.json": b"{}"}, "nothing of coco in it.*no record found"),
        ({"captions_train2017.json": b'{"images": [{"id": 1, "file_name": "a"}]}'}, "nothing of coco.*1 x no caption"),
        ({"mine.json": b"{}"}, "--annotations train=.*mine.json"),
        ({"dataset_coco.json": b'{"images": [{"sentences": []}]}'}, "1 x malformed record"),
    ],
)
def test_files_of_another_format_are_named(files, message, tmp_path):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    names = tuple(str(tmp_path / name) for name in files)
    with pytest.raises(UserError, match=message) as caught:
        shards(tmp_path, "coco", annotations=names, images=(images(tmp_path, "tar", ["a.jpg"]),))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_root_with_two_forms_of_a_data_set_asks_which(tmp_path):
    write(tmp_path / "root/captions_train2017.json", coco_json([1]))
    write(tmp_path / "root/captions_train2014.json", coco_json([1]))
    with pytest.raises(UserError, match="raw files of 2017 and as the raw files of 2014: choose with --annotations"):
        shards(tmp_path, "coco", root=str(tmp_path / "root"))


@pytest.mark.parametrize("name", [name for name in SOURCES if hasattr(source_module(name), "DATA")])
def test_without_files_every_source_says_what_it_wants(name, tmp_path):
    with pytest.raises(UserError, match=f"{name} (wants|needs)") as caught:
        shards(tmp_path, name)
    assert "--" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_is_on_the_page_of_the_data(name):
    page = (Path(__file__).parents[2] / "docs/data.md").read_text()
    assert f"`{name}`" in page
    data = getattr(source_module(name), "DATA", None)
    for layout in data.layouts if data else ():
        for one in layout.files:
            assert any(f"`{file}`" in page for file in one.names), (name, one.names)


@needs_data
def test_the_real_coco(tmp_path):
    account, found = shards(tmp_path, "coco", root=str(DATA / "coco_mini"))
    assert {name: split["written"] for name, split in account["splits"].items()} == {"train": 80, "val": 79}
    assert account["skipped"] == {}
    value = found["train"]["000000125870"]
    assert "An airport filled with large passenger jets parked next to each other." in value["captions"]
    assert (value["width"], value["height"], value["coco_id"]) == (640, 383, 125870)
    assert sum(len(value["captions"]) for value in found["train"].values()) == 400
