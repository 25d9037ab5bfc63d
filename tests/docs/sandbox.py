"""A folder in which the documentation's commands find the files that they name, all of them tiny."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from data_prep.shapes_published import write_published
from data_prep.sources import SourceConfig, prepare
from tests.data_prep.published_files import coco_json, img2dataset_files, jpg, karpathy, region, write
from tests.data_prep.samples import picture
from tests.data_prep.stored import store
from tests.docs.pages import ROOT

TINY = ROOT / "tests" / "launch" / "tiny.yaml"
SIZES = {"train": 64, "val": 16, "test": 16, "unseen": 16}
_TRAINING = ("run", "pretrain", "trim", "evaluate")
_VALUES: Mapping[tuple[str, ...], Mapping[str, str]] = {
    ("shard", "shapes"): {"--sizes": json.dumps(SIZES), "--image_size": "32", "--workers": "1"},
    ("shard",): {"--workers": "1"},
    ("verify",): {"--workers": "1"},
    ("stats",): {"--workers": "1"},
    ("index",): {"--workers": "1"},
    **{("analyse", what): {"--samples": "16"} for what in ("similarity", "attention", "trimming", "leak")},
    ("import",): {"--vision-heads": "4", "--text-heads": "4"},
    ("bench", "vision"): {"--model": "tiny", "--image-size": "32", "--batch": "2", "--rounds": "1", "--warmup": "1"},
    ("bench", "step"): {"--model": "tiny", "--image-size": "32", "--batch": "2", "--rounds": "1", "--warmup": "1"},
    ("bench", "trim"): {"--model": "meter_tiny", "--image-size": "64", "--rounds": "1", "--warmup": "1"},
    ("bench", "shard"): {"--samples": "64", "--image-size": "64", "--rounds": "1", "--warmup": "1", "--workers": "1"},
    ("bench", "loader"): {
        "--samples": "384", "--size": "32", "--rounds": "1", "--warmup": "1", "--workers": "1", "--peers": "none",
    },
}  # fmt: skip
"""Options that make a command small; the longest beginning that fits counts."""
_TRAINED = {
    "--data.sizes": json.dumps(SIZES), "--trim.validation.every_steps": "2", "--trim.validation.samples": "8",
}  # fmt: skip
"""Options of trainings that are made small where they are given."""


def furnish(folder: Path) -> None:
    """Writes everything that no command of a page makes by itself."""
    _coco(folder)
    _vg(folder)
    _lists(folder)
    _tasks(folder)
    _scored(folder)
    for name, files in (("pics", ("a.jpg", "b.jpg")), ("images", ("x.jpg",))):
        store(folder / name, "folder", {file: jpg(number) for number, file in enumerate(files)})
    (folder / "pics/a.txt").write_text("a thing\n")
    store(folder / "more", "zip", {"c.jpg": jpg(3), "c.txt": b"another thing"})
    (folder / "picture.png").write_bytes(picture(1, 32, ".png"))
    (folder / "prompts.txt").write_text("a picture of a {}\n{}\n")
    drawn(folder / "ready", SIZES)
    for source in ("coco", "vg", "sbu", "cc3m"):
        shutil.copytree(folder / "ready", folder / "ready" / source, ignore=shutil.ignore_patterns("coco", "vg", "sbu"))


def drawn(folder: Path, sizes: Mapping[str, int]) -> None:
    """Shards of drawn shapes."""
    prepare(SourceConfig(sizes=dict(sizes), image_size=32, shard_samples=40), folder, workers=1)


def _coco(folder: Path) -> None:
    for root in (folder, folder / "home/coco"):
        for part, ids in (("train", range(32)), ("val", range(32, 48))):
            root.joinpath("annotations").mkdir(parents=True, exist_ok=True)
            write(root / f"annotations/captions_{part}2017.json", coco_json(list(ids)))
            store(root / f"{part}2017", "zip", {f"{part}2017/{n:012d}.jpg": jpg(n) for n in ids})
    store(folder / "train2017", "tar", {f"{n:012d}.jpg": picture(n, 64, ".jpg") for n in range(32)})
    parts = {f"COCO_val2014_{n:012d}.jpg": ("val", "test", "restval")[n % 3] for n in range(96)}
    told = karpathy("coco", parts, cocoid=lambda n: n, filepath=lambda n: "val2014")
    write(folder / "dataset_coco.json", told)
    write(folder / "image_info_test2014.json", {"images": coco_json(list(range(8)))["images"]})
    store(folder / "test2014", "zip", {f"test2014/{n:012d}.jpg": jpg(n) for n in range(8)})
    for release in ("train2014", "val2014"):
        store(folder / release, "zip", {f"{release}/{name}": jpg(n) for n, name in enumerate(parts)})


def _vg(folder: Path) -> None:
    root = folder / "home/vg"
    regions = [{"regions": [region(f"thing {n}", 60, 60, n)], "id": n} for n in range(64)]
    known = [{"image_id": n, "width": 100, "height": 100, "url": f"https://x/VG_100K/{n}.jpg", "coco_id": None,
              "flickr_id": None} for n in range(64)]  # fmt: skip
    write(root / "region_descriptions.json", regions)
    write(root / "image_data.json", known)
    store(root / "VG_100K", "folder", {f"{n}.jpg": jpg(100 + n) for n in range(64)})
    write_published("vqa", folder / "home/vqa", {"train": 120, "val": 8}, 32, 0, lambda _: None)
    write(folder / "coco.json", [{"image": "train2017/000000000001.jpg", "caption": "one"}])
    write(folder / "vg.json", [{"image": "VG_100K/1.jpg", "caption": ["two", "three"]}])


def _lists(folder: Path) -> None:
    urls = {f"http://x.org/{n}.jpg": f"caption {n}" for n in range(5)}
    (folder / "Train_GCC-training.tsv").write_text("".join(f"{text}\t{url}\n" for url, text in urls.items()))
    store(folder / "downloads/cc3m/00000", "folder", img2dataset_files(urls))
    names = {f"10000{n}.jpg": ("train", "val", "test")[n % 3] for n in range(6)}
    write(folder / "dataset_flickr30k.json", karpathy("flickr30k", names))
    store(folder / "flickr30k-images", "tar", {name: jpg(n) for n, name in enumerate(names)})
    pq.write_table(pa.table({"file": ["a.jpg"], "text": ["a thing"]}), folder / "a.parquet")
    (folder / "b.csv").write_text("file,text\nb.jpg,another thing\n")
    rows = [f"{n}.jpg,a picture of {n},{'val' if n % 4 == 3 else 'train'}\n" for n in range(40)]
    (folder / "captions.csv").write_text("file,text,split\n" + "".join(rows) + "gone.jpg,not there,train\n")
    store(folder / "pictures", "folder", {f"{n}.jpg": picture(n, 48, ".jpg") for n in range(40)})


def _tasks(folder: Path) -> None:
    """NLVR2's files, with predictions of its dev."""

    def line(split: str, label: str) -> dict[str, Any]:
        return {"identifier": f"{split}-10-0-0", "sentence": "s", "label": label, "left_url": "http://l",
                "right_url": "http://r", "writer": 1, "validation": {}, "synset": "dog"}  # fmt: skip

    for split in ("train", "dev"):
        write(folder / f"{split}.json", [line(split, "True")])
        store(folder / "images", "folder", {f"{split}-10-0-img{side}.png": picture(side) for side in (0, 1)})
    (folder / "dev.csv").write_text("dev-10-0-0,True\n")


def _scored(folder: Path) -> None:
    """Predictions and annotations of the other servers."""
    said = [{"answer": "red", "answer_id": n, "answer_confidence": "yes"} for n in range(10)]
    asked = [{"question_id": 10, "image_id": 1, "question_type": "what", "answer_type": "other", "answers": said}]
    write(folder / "v2_mscoco_val2014_annotations.json", {"annotations": asked})
    write(folder / "results.json", [{"question_id": 10, "answer": "red"}])
    told = {"images": [{"id": 1}], "annotations": [{"image_id": 1, "id": n, "caption": "a dog"} for n in range(5)]}
    write(folder / "captions_val2014.json", told)
    write(folder / "captions.json", [{"image_id": 1, "caption": "a dog"}])
    gold = {"annotator_labels": ["neutral"], "captionID": "1#0", "gold_label": "neutral", "Flickr30K_ID": "1",
            "pairID": "1#0r1", "sentence1": "a", "sentence2": "b"}  # fmt: skip
    write(folder / "snli_ve_dev.jsonl", [gold])
    write(folder / "dev.jsonl", [{"pairID": "1#0r1", "prediction": "neutral"}])


def filled_in(words: Sequence[str]) -> list[str]:
    """A command with names of this folder in the place of DIR, FILE, RUN and the like."""
    given = {"RUN": "runs/demo", "OTHER_RUN": "runs/other", "SOURCE": "coco", "FILE": "picture.png"}
    given["DIR"] = "ready"
    if words[0] == "shard":
        given |= {"DIR": f"~/{'coco' if words[1] == 'SOURCE' else words[1]}", "FILE": "dataset_coco.json"}
        given["DIR_OR_ARCHIVE"] = "val2014.zip"
    return [given.get(word, word) for word in words if word != "..."]


def made_small(words: list[str], folder: Path) -> list[str]:
    """The same command on few samples, with a tiny model, in one process."""
    for option, value in (_VALUES.get(tuple(words[:2])) or _VALUES.get((words[0],), {})).items():
        words = with_option(words, option, value)
    if words[0] == "draw":
        words = [re.sub(r"^(\w+)=\d+$", lambda m: f"{m[1]}={120 if m[1] == 'train' else 24}", word) for word in words]
        words = with_option(words, "--image-size", "32")
    if words[0] in _TRAINING and "--task" not in words:
        words = _trained_small(words, folder)
    if words[0] == "compare":
        words = [*words, *_compared_small(words, folder)]
    return words


def _compared_small(words: Sequence[str], folder: Path) -> list[str]:
    """The reference and one other variant of an experiment, one seed."""
    other = {"unpruned": {"pretrain.pruning.method": "none"}, "query": {"pretrain.pruning.elip.guidance": "query"}}
    if "trimming" in words[1]:
        other = {"smarttrim": {}, "without_curriculum": {"trim.smarttrim.curriculum.share": "0"}}
    if "resolution" in words[1]:
        other = {"full_64": {}, "full_96": {"trim.image_size": 96}}
    base = ["configs/runs/demo.yaml", str(_overlay(folder, ["configs/runs/demo.yaml"]))]
    shared = {"pretrain.loop.samples": 32, "trim.loop.samples": 16, "trim.targets": [1.0], "evaluate.pictures": 0}
    values = {"variants": other, "base": base, "seeds": [0], "minutes": 0.05, "shared": shared}
    return [word for name, value in values.items() for word in (f"--{name}", json.dumps(value))]


def with_option(words: Sequence[str], option: str, value: str) -> list[str]:
    """With this value in the place of the one that is given, if any."""
    words = list(words)
    if option in words:
        words[words.index(option) + 1] = value
        return words
    return [*words, option, value]


def _trained_small(words: list[str], folder: Path) -> list[str]:
    end = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
    configs = words[1:end]
    words = [*words[:end], str(_overlay(folder, configs)), *words[end:]]
    for option in [option for option in _TRAINED if option in words]:
        words = with_option(words, option, _TRAINED[option])
    if "GFLOPs" in " ".join(words):  # those of the demo's model
        words = with_option(words, "--targets" if "--targets" in words else "--trim.targets", "[1.0, 2.0x]")
    if "evit" in words:  # with it a model of 4 layers can reach 1.86x
        words = with_option(words, "--trim.targets", "[1.0, 1.5]")
    return words


def _overlay(folder: Path, configs: Sequence[str]) -> Path:
    """tests/launch/tiny.yaml as a layer that lies over these recipes."""
    small = yaml.safe_load(TINY.read_text())
    name = "-".join(Path(config).stem for config in configs)
    del small["name"], small["out"], small["trim"]["targets"]
    small["cluster"]["gpus_per_worker"] = 0
    small["trim"]["answers"] = {"at_least": 5}
    small["evaluate"] = {"retrieval_pairs": 16, "rerank": 4, "pictures": 1}
    drawn = any(Path(config).stem in ("demo", "shapes") for config in configs)
    drawn_here = drawn and not any("tasks" in one for one in configs)
    if drawn_here:
        small["data"]["sizes"] = SIZES
    else:
        del small["data"]
    if any("blip" in config or "captioning" in config for config in configs):
        small["model"]["text"] |= {"text_layers": 2, "fusion_layers": 0, "max_positions": 40}
    if any("several" in config for config in configs):
        small["tasks"] = {"vqa": {"trim": small["trim"], "evaluate": {"pictures": 1}}}
    path = folder / f"overlay-{name}.yaml"
    path.write_text(yaml.safe_dump(small))
    return path


def downloaded(words: Sequence[str], folder: Path) -> None:
    """What stands in for the shards that a download gives."""
    shutil.copytree(folder / "ready" / "sbu", folder / words[words.index("--out") + 1])


def copied(trained: Path, folder: Path) -> None:
    """The trained run, under the names that pages give it, and weights of another project."""
    from tests.launch.test_weight_commands import official  # torch, which the quick commands do without

    official(folder / "model_base.pth", "blip")
    for name in ("demo", "other", "query-0", "query-1", "stage-0", "stage-1"):
        shutil.copytree(trained, folder / "runs" / name)
