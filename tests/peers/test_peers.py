"""Other projects' tools read our shards, and ours read theirs; see environments.py for their versions."""

import functools
import http.server
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep.job import Layout
from data_prep.make_index import index_folder
from data_prep.records import Record
from data_prep.stats import count_folder, describe
from data_prep.verify import verify_folder
from data_prep.writer import write_split
from pipeline.data.shards import ShardFolder
from tests.peers.environments import python_of, run_script
from tests.pipeline.data.samples import Listed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SIZES = {"train": 60, "val": 10}


def picture(number: int, extension: str) -> bytes:
    pixels = cv2.resize(np.random.default_rng(number).integers(0, 255, (6, 6, 3)).astype(np.uint8), (40 + number, 48))
    data: bytes = cv2.imencode(extension, pixels)[1].tobytes()
    return data


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of ours with pictures of every format, several captions, and letters beyond ASCII."""
    root = tmp_path_factory.mktemp("ours")
    for split, size in SIZES.items():
        records = [
            Record(
                key=f"{split}-{number:04d}",
                source="test",
                id=str(number),
                images={"": picture(number, (".jpg", ".png", ".webp")[number % 3])},
                captions=[f"größe {number} 猫", f"second {number}"],
                fields={"number": number},
            )
            for number in range(size)
        ]
        # Both kinds: those of the first split have SHA-256s, the others none.
        layout = Layout(shard_samples=20, checksums="sha256" if split == next(iter(SIZES)) else "crc32")
        write_split(Listed(records), root / split, name=split, fingerprint="f", layout=layout, workers=1)
    return root


@pytest.fixture(scope="session")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("peers")


WEBDATASET = """
import glob, json, sys, webdataset
tars = sorted(glob.glob(sys.argv[1] + "/*.tar"))
data = webdataset.WebDataset(tars, shardshuffle=False).decode("pilrgb").rename(image="jpg;png;webp")
print(json.dumps([[s["__key__"], s["txt"], s["json"]["number"], s["image"].size] for s in data]))
"""


def test_plain_webdataset_reads_ours(ours: Path, peers: Path) -> None:
    read = json.loads(run_script(python_of("webdataset", peers), WEBDATASET, str(ours / "train")))
    assert [line[:3] for line in read] == [[f"train-{n:04d}", f"größe {n} 猫", n] for n in range(60)]
    assert [line[3] for line in read] == [[40 + n, 48] for n in range(60)]


ENERGON = """
import json, sys
import megatron.energon as energon
read = {}
for split in ("train", "val"):
    worker = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
    data = energon.get_val_dataset(sys.argv[1], split_part=split, worker_config=worker, batch_size=1)
    batches = list(energon.get_loader(data))
    read[split] = [[b.__key__[0], b.caption[0], list(b.image.shape[2:])] for b in batches]
    assert type(batches[0]).__name__ == "CaptioningSample"
print(json.dumps(read))
"""


def test_energon_prepares_and_reads_ours(ours: Path, peers: Path) -> None:
    python = python_of("energon", peers)
    command = [
        str(python.with_name("energon")), "prepare", str(ours), "--non-interactive", "--num-workers", "1",
        "--split-parts", r"train:train/.*\.tar", "--split-parts", r"val:val/.*\.tar",
        "--sample-type", "CaptioningSample", "--field-map", '{"image": "jpg,png,webp", "caption": "txt"}',
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((ours / ".nv-meta" / ".info.json").read_text())["shard_counts"] == {
        "train/00000.tar": 20, "train/00001.tar": 20, "train/00002.tar": 20, "val/00000.tar": 10,
    }  # fmt: skip
    read = json.loads(run_script(python, ENERGON, str(ours)).splitlines()[-1])
    for split, size in SIZES.items():
        wanted = {f"{split}-{n:04d}": (f"größe {n} 猫", (48, 40 + n)) for n in range(size)}
        assert {key: (caption, tuple(shape)) for key, caption, shape in read[split]} == wanted
    assert verify_folder(ours / "train") == []


OPEN_CLIP = """
import json, sys, types
import numpy, torch
from open_clip_train.data import get_wds_dataset
args = types.SimpleNamespace(
    train_data=sys.argv[1], val_data=sys.argv[1], train_num_samples=60, val_num_samples=60, dataset_resampled=False,
    train_data_upsampling_factors=None, seed=0, workers=1, world_size=1, batch_size=4,
)
read = {}
for training in (True, False):
    preprocess = lambda image: torch.tensor(image.size)
    tokenize = lambda text: torch.tensor([list(text.encode().ljust(40))])
    info = get_wds_dataset(args, preprocess, training, tokenizer=tokenize)
    read[str(training)] = [
        [size.tolist(), bytes(text.tolist()).decode().rstrip()]
        for sizes, texts in info.dataloader for size, text in zip(sizes, texts)
    ]
print(json.dumps(read))
"""


def test_open_clips_loader_reads_ours(ours: Path, peers: Path) -> None:
    pattern = f"{ours}/train/{{00000..00002}}.tar"
    read = json.loads(run_script(python_of("open_clip", peers), OPEN_CLIP, pattern).splitlines()[-1])
    wanted = sorted([[40 + n, 48], f"größe {n} 猫"] for n in range(60))
    assert sorted(read["True"]) == wanted
    assert sorted(read["False"]) == wanted


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def pictures(tmp_path: Path) -> Iterator[str]:
    """The address of a server of twelve pictures, and of one file that is none."""
    folder = tmp_path / "served"
    folder.mkdir()
    for number in range(12):
        extension = (".jpg", ".png", ".webp")[number % 3]
        (folder / f"{number}{extension}").write_bytes(picture(number, extension))
    (folder / "bad.jpg").write_bytes(b"no picture")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("resize", ["border", "no"])
def test_shards_of_img2dataset_are_read_by_ours(pictures: str, tmp_path: Path, peers: Path, resize: str) -> None:
    names = [f"{number}{('.jpg', '.png', '.webp')[number % 3]}" for number in range(12)] + ["bad.jpg", "gone.jpg"]
    lines = ["url,caption", *(f"{pictures}/{name},told of {name} 猫" for name in names)]
    (tmp_path / "urls.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    command = [
        str(python_of("img2dataset", peers).with_name("img2dataset")), "--url_list", str(tmp_path / "urls.csv"),
        "--input_format", "csv", "--url_col", "url", "--caption_col", "caption", "--output_format", "webdataset",
        "--output_folder", str(out), "--number_sample_per_shard", "5", "--processes_count", "1", "--thread_count", "4",
        "--image_size", "32", "--resize_mode", resize, "--compute_hash", "sha256", "--retries", "0",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path.suffix for path in out.iterdir()} == {".tar", ".parquet", ".json"}
    account = index_folder(out)
    assert (account["written"], account["asked"]) == (12, 14)
    assert account["skipped"] == {"not downloaded": 1, "not resized": 1}
    assert verify_folder(out) == []
    folder = ShardFolder(out)
    samples = [folder.read(row) for row in range(len(folder))]
    assert sorted(sample.captions[0] for sample in samples) == sorted(f"told of {name} 猫" for name in names[:12])
    assert {sample.fields["status"] for sample in samples} == {"success"}
    figures = describe(count_folder(out))
    assert figures["sources"] == {"img2dataset": 12}
    assert figures["unusable"] == {}
