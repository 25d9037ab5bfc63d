"""Damaged annotation files and archives: one clear line or counted records, never a traceback or a runaway."""

import json
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.errors import UserError
from data_prep.records import Record, Skipped
from data_prep.sources import SourceConfig, source_module
from tests.data_prep.published_files import img2dataset_files, karpathy, region
from tests.data_prep.samples import picture
from tests.data_prep.stored import store

COCO = {"images": [{"id": n, "file_name": f"{n}.jpg"} for n in range(3)],
        "annotations": [{"image_id": n, "id": n, "caption": "é word"} for n in range(3)]}  # fmt: skip
NLVR2 = {"identifier": "train-0-0-0", "sentence": "s", "label": "True"}
VE = {"Flickr30K_ID": "1", "gold_label": "neutral", "sentence1": "a", "sentence2": "b", "pairID": "p"}
FILES: dict[str, dict[str, object]] = {
    "coco": {"captions_train2017.json": COCO, "dataset_coco.json": karpathy("coco", {"1.jpg": "val"})},
    "vg": {"region_descriptions.json": [{"id": 1, "regions": [region("a", 50, 50, 1)]}],
           "image_data.json": [{"image_id": 1, "width": 60, "height": 60, "coco_id": None, "flickr_id": 5}]},
    "cc3m": {"Train_GCC-training.tsv": "one\thttp://x.org/0.jpg?a=b\ntwo\thttp://y\n"},
    "sbu": {"sbu-captions-all.json": {"image_urls": ["http://x"], "captions": ["c"], "user_ids": ["u"]}},
    "flickr30k": {"results_20130124.token": "1.jpg#0\ta b\n1.jpg#1\tc\n"},
    "flickr8k": {"captions.txt": "image,caption\n" + "".join(f'{n}.jpg,"a, ""b"""\n' for n in range(4))},
    "nlvr": {"train.json": '{"sentence": "a", "label": "true", "identifier": "1-0", "directory": "0"}\n'},
    "nlvr2": {"dev.json": json.dumps(NLVR2) + "\n" + json.dumps(NLVR2) + "\n"},
    "vqa": {"v2_OpenEnded_mscoco_val2014_questions.json": {"questions": [
                {"image_id": 1, "question": "q", "question_id": 1}]},
            "v2_mscoco_val2014_annotations.json": {"annotations": [
                {"image_id": 1, "question_id": 1, "multiple_choice_answer": "a", "answers": [{"answer": "a"}]}]}},
    "snli_ve": {"snli_ve_dev.jsonl": json.dumps(VE) + "\n"},
    "nocaps": {"nocaps_val_4500_captions.json": COCO},
    "albef": {"vg.json": [{"image": "a/1.jpg", "caption": ["x"]}, {"images": ["1.jpg", "2.jpg"], "sentence": "s",
                                                                     "label": "True"}]},
    "table": {"t.csv": 'image,caption\n1.jpg,"a\nb"\n2.jpg,c\n'},
}  # fmt: skip
PARTS = [b"\x00", b"\xff", b'"', b"{", b"[", b"]" * 9, b"NaN", b"1e999", b"\\ud800", b"-" * 30, b"\t", b"\n",
         b"9" * 5000, b"null", b"[" * 3000, b"\xed\xa0\x80", b"true", b"#", b"|"]  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> str:
    files = {f"{n}.jpg": picture(n) for n in range(4)} | img2dataset_files({"http://x.org/0.jpg?a=b": "c"})
    return str(store(tmp_path_factory.mktemp("pictures") / "p", "tar", files))


def read_all(config: SourceConfig) -> list[Record | Skipped]:
    """Plans, loads and reads every split; an error of the user's is a good end too."""
    try:
        splits = [plan.load() for plan in source_module(config.name).plan(config).values()]
    except UserError as error:
        assert len(str(error).splitlines()) == 1
        assert len(str(error)) < 2000
        return []
    records = [record for split in splits for record in split.records(0, len(split))]
    assert len(records) == sum(map(len, splits))
    for record in records:
        if isinstance(record, Record):
            json.dumps([record.captions, record.statements, record.questions, record.fields], allow_nan=False).encode()
            "".join(record.captions).encode()
    return records


@st.composite
def damage(draw: st.DrawFn) -> list[tuple[float, float, bytes]]:
    """Some cuts: (where it begins, what share goes, what comes in its place)."""
    cut = st.tuples(st.floats(0, 1), st.sampled_from([0.0, 0.0, 0.01, 0.1, 1.0]), st.sampled_from(PARTS) | st.binary())
    return draw(st.lists(cut, min_size=1, max_size=3))


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=60)
@given(cuts=damage(), which=st.integers(0, 3))
def test_damaged_annotations_end_well(name, cuts, which, pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    chosen = dict([list(FILES[name].items())[which % len(FILES[name])]]) if name == "coco" else FILES[name]
    for number, (file, value) in enumerate(chosen.items()):
        data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        if number == which % len(chosen):
            for where, share, new in cuts:
                at = int(where * len(data))
                data = data[:at] + new + data[at + int(share * len(data)) :]
        (folder / file).write_bytes(data)
    files = tuple(str(folder / file) for file in chosen)
    sizes = {"val": 1, "test": 1} if name == "flickr8k" else {}
    read_all(SourceConfig(name=name, annotations=files, images=(pictures,), cache=str(folder / "c"), sizes=sizes))


@pytest.mark.parametrize("name", FILES)
def test_whole_annotations_give_a_sample(name, pictures, tmp_path):
    """The fuzzed files are good ones before they are damaged."""
    for file in FILES[name]:
        value = FILES[name][file]
        (tmp_path / file).write_text(value if isinstance(value, str) else json.dumps(value))
    files = tuple(str(tmp_path / file) for file in FILES[name])[: 1 if name == "coco" else None]
    sizes = {"val": 1, "test": 1} if name == "flickr8k" else {}
    records = read_all(SourceConfig(name=name, annotations=files, images=(pictures,), cache=str(tmp_path), sizes=sizes))
    reasons = {record.reason for record in records if isinstance(record, Skipped)}
    assert records
    assert reasons <= {"picture missing", "repeated record"}


@pytest.mark.parametrize("kind", ["tar", "zip", "deflated"])
@settings(max_examples=80)
@given(seed=st.integers(0, 10_000))
def test_damaged_archives_end_well(kind, seed, tmp_path_factory):
    folder, dice = tmp_path_factory.mktemp("fuzz"), random.Random(seed)
    files = img2dataset_files({f"http://x.org/{n}.jpg": f"c{n}" for n in range(3)})
    path = store(folder / "p", kind, files)
    data = bytearray(path.read_bytes())
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(data))
        data[at : at + dice.choice([1, 1, 4, 600])] = dice.randbytes(dice.choice([1, 1, 4, 600]))
    path.write_bytes(data)
    for name in ("img2dataset", "folder"):
        read_all(SourceConfig(name=name, images=(str(path),), cache=str(folder / name)))


def test_nested_brackets_take_neither_memory_nor_time(tmp_path, pictures):
    """What made ijson take all memory: tried in a process that may have little."""
    path = tmp_path / "captions_train2017.json"
    path.write_bytes(b"[" * 3_000_000)
    code = (
        "import sys\nfrom data_prep.sources import SourceConfig, source_module\n"
        "from data_prep.errors import UserError\n"
        "config = SourceConfig(name='coco', annotations=(sys.argv[1],), images=(sys.argv[2],))\n"
        "try: source_module('coco').plan(config)\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), pictures], capture_output=True, text=True, timeout=60,
        cwd=Path(__file__).parents[2],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)),
    )  # fmt: skip
    assert "nested too deep" in done.stdout, done.stderr


@pytest.mark.slow
def test_memory_stays_flat_for_many_records(tmp_path, pictures):
    path = tmp_path / "Train_GCC-training.tsv"
    with open(path, "w") as file:
        file.writelines(f"a caption of some words {n}\thttp://x.org/{n}.jpg\n" for n in range(400_000))
    code = (
        "import pickle, sys\nfrom pathlib import Path\nfrom data_prep.sources import SourceConfig, source_module\n"
        "config = SourceConfig(name='cc3m', annotations=(sys.argv[1],), images=(sys.argv[2],), cache=sys.argv[3])\n"
        "split = source_module('cc3m').plan(config)['train'].load()\n"
        # Not ru_maxrss: that begins with what the process that started this one held.
        "status = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())\n"
        "peak = int(status['VmHWM'].split()[0]) // 1024\n"
        "print(len(split), peak, len(pickle.dumps(split)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), pictures, str(tmp_path / "cache")],
        capture_output=True, text=True, timeout=110, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    samples, peak, pickled = map(int, done.stdout.split())
    assert samples == 400_000
    assert peak < 150
    assert pickled < 2000
