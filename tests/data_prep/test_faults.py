"""Every fault that a folder can have is found, is of its own kind, and is gone after a repair."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.faults import NAMED, counts
from data_prep.job import Layout
from data_prep.repair import repair_folder
from data_prep.verify import verify_folder
from data_prep.writer import write_split
from launch.cli import main
from tests.data_prep.samples import Plain, contents, picture
from tests.data_prep.test_verify import make_tar

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path) -> Path:
    write_split(Plain(), tmp_path / "train", name="plain", fingerprint="f", layout=Layout(shard_samples=10), workers=1)
    return tmp_path / "train"


def change_index(folder: Path, change: Callable[[dict], object]) -> None:
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))


def rewrite(folder: Path, change: Callable[[dict[str, bytes]], dict[str, bytes] | list[tuple[str, bytes]]]) -> None:
    """Changes the members of the second shard, keeping the tar whole."""
    path = folder / "00001.tar"
    with tarfile.open(path) as tar:
        members = {info.name: tar.extractfile(info).read() for info in tar}
    make_tar(path, change(members))


def without(name: str) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda members: {key: data for key, data in members.items() if key != name}


def overwritten(**fields: object) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda members: members | {"k0012.json": json.dumps(json.loads(members["k0012.json"]) | fields).encode()}


def change_rows(folder: Path, row: int, column: int) -> None:
    rows = np.load(folder / "samples.npy")
    rows[row, column] += 1
    np.save(folder / "samples.npy", rows)


TAR, SAMPLES = "00001.tar", "samples.npy"
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a cut tar": (lambda f: os.truncate(f / TAR, 20_000), "truncated tar"),
    "a tar without end mark": (lambda f: os.truncate(f / TAR, (f / TAR).stat().st_size - 1024), "truncated tar"),
    "a hole": (lambda f: (f / TAR).write_bytes(_hole((f / TAR).read_bytes())), "broken tar"),
    "two tars in one": (lambda f: (f / TAR).write_bytes((f / TAR).read_bytes() * 2), "broken tar"),
    "no picture": (lambda f: rewrite(f, without("k0012.png")), "missing member"),
    "no text": (lambda f: rewrite(f, without("k0012.txt")), "missing member"),
    "no JSON": (lambda f: rewrite(f, without("k0012.json")), "missing member"),
    "two pictures": (lambda f: rewrite(f, lambda m: m | {"k0019.jpg": picture(1, 8, ".jpg")}), "missing member"),
    "another picture": (lambda f: rewrite(f, lambda m: m | {"k0012.png": picture(99)}), "checksum"),
    "another shard": (lambda f: shutil.copy(f / "00000.tar", f / TAR), "duplicate key"),
    "a sample too many": (lambda f: change_index(f, lambda i: i["shardlist"].pop()), "orphan shard"),
    "a broken picture": (lambda f: rewrite(f, lambda m: m | {"k0012.png": m["k0012.png"][:60]}), "bad image"),
    "another size": (lambda f: rewrite(f, overwritten(width=7)), "bad json"),
    "broken JSON": (lambda f: rewrite(f, lambda m: m | {"k0012.json": b"{"}), "bad json"),
    "JSON of half characters": (lambda f: rewrite(f, overwritten(captions=["\ud800"])), "bad json"),
    "a list as JSON": (lambda f: rewrite(f, lambda m: m | {"k0012.json": b"[]"}), "bad json"),
    "another caption": (lambda f: rewrite(f, lambda m: m | {"k0012.txt": b"other"}), "caption"),
    "a key twice in a shard": (lambda f: rewrite(f, lambda m: [*m.items(), *list(m.items())[:3]]), "duplicate key"),
    "a pickle": (lambda f: rewrite(f, lambda m: m | {"k0019.pyd": b"x"}), "unsafe member"),
    "a name that leads out": (lambda f: rewrite(f, lambda m: m | {"../k.png": b"x"}), "unsafe member"),
    "an absolute name": (lambda f: rewrite(f, lambda m: m | {"/k.png": b"x"}), "unsafe member"),
    "a shard less": (lambda f: (f / TAR).unlink(), "missing shard"),
    "a shard more": (lambda f: shutil.copy(f / TAR, f / "9.tar"), "orphan shard"),
    "a wrong number": (lambda f: change_index(f, _more_samples), "count"),
    "a wrong size": (lambda f: change_index(f, lambda i: i["shardlist"][1].update(filesize=5)), "count"),
    "a wrong checksum": (lambda f: change_index(f, lambda i: i["shardlist"][1].update(sha256="0")), "checksum"),
    "a wrong account": (lambda f: change_index(f, lambda i: i["account"].update(written=3)), "count"),
    "an account that does not add up": (lambda f: change_index(f, lambda i: i["account"].update(asked=3)), "count"),
    "a shard elsewhere": (lambda f: change_index(f, lambda i: i["shardlist"][1].update(url="../x.tar")), "index"),
    "a shard named twice": (lambda f: change_index(f, lambda i: i["shardlist"].append(i["shardlist"][1])), "index"),
    "an index of another kind": (lambda f: (f / "index.json").write_text("[1]"), "index"),
    "no index": (lambda f: (f / "index.json").unlink(), "index"),
    "deep JSON as index": (lambda f: (f / "index.json").write_text("[" * 100_000), "index"),
    "no samples.npy": (lambda f: (f / SAMPLES).unlink(), "samples.npy"),
    "another place": (lambda f: change_rows(f, 12, 0), "samples.npy"),
    "another number of captions": (lambda f: change_rows(f, 12, 2), "samples.npy"),
    "another checksum of a sample": (lambda f: change_rows(f, 12, 4), "samples.npy"),
    "one more caption": (lambda f: rewrite(f, overwritten(captions=["picture 12", "number 2"])), "checksum"),
    "a pickle as samples.npy": (lambda f: np.save(f / SAMPLES, np.array([{}], dtype=object)), "samples.npy"),
}


def _hole(data: bytes) -> bytes:
    return data[:6000] + bytes(3000) + data[9000:]


def _more_samples(index: dict) -> None:
    index["shardlist"][0]["nsamples"] -= 1
    index["shardlist"][1]["nsamples"] += 1


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_found_and_mended(folder, name):
    damage, kind = FAULTS[name]
    damage(folder)
    assert kind in counts(verify_folder(folder, workers=1)), name
    repair = repair_folder(folder, workers=1)
    assert counts(repair.faults) == counts(repair.faults) | {kind: counts(repair.faults)[kind]}
    assert verify_folder(folder, workers=1) == [], name
    assert repair.kept >= 15


def test_of_very_many_faults_the_first_are_named_and_all_are_counted(tmp_path):
    make_tar(tmp_path / "0.tar", [(f"k{n}.png", b"no picture") for n in range(NAMED + 50)])
    faults = verify_folder(tmp_path)
    assert counts(faults)["bad image"] == NAMED + 50
    assert len([fault for fault in faults if fault.kind == "bad image"]) == NAMED + 1


def test_the_command_says_what_is_wrong_and_what_was_lost(folder, capsys):
    words = ["verify", str(folder.parent), "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out) == {"splits": [str(folder)], "counts": {}, "faults": []}
    rewrite(folder, lambda members: members | {"k0012.png": picture(99)})
    assert main([*words, "--no-decode"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["counts"] == {"checksum": 1, "count": 1}
    assert {"split", "kind", "where", "what", "count"} == set(data["faults"][0])
    assert main(["verify", str(folder), "--repair", "--workers", "2"]) == 1
    told = capsys.readouterr().out
    assert "24 samples are kept, 1 were lost" in told
    assert "lost 00001.tar:k0012: its picture has another checksum" in told
    assert main(words) == 0
    assert main(["verify", str(folder.parent.parent / "nowhere")]) == 2
    with pytest.raises(SystemExit, match="2"):
        main(["verify", str(folder), "--workers", "0"])


def test_a_fault_of_one_split_is_told_with_its_folder(folder, capsys):
    shutil.copytree(folder, folder.with_name("val"))
    (folder.with_name("val") / TAR).unlink()
    assert main(["verify", str(folder.parent)]) == 1
    assert capsys.readouterr().out.splitlines() == [f"{folder.with_name('val')}: 00001.tar: is missing"]


SCRIPT = (
    "import sys; from pathlib import Path; from data_prep.repair import repair_folder; repair_folder(Path(sys.argv[1]))"
)


def test_a_repair_that_is_killed_is_finished_by_the_next(tmp_path):
    write_split(Plain(size=400), tmp_path / "a", name="p", fingerprint="f", layout=Layout(shard_samples=20), workers=1)
    for number in range(0, 20, 2):
        os.truncate(tmp_path / "a" / f"{number:05d}.tar", 30_000)
    shutil.copytree(tmp_path / "a", tmp_path / "whole")
    repair_folder(tmp_path / "whole", workers=1)
    rows = np.load(tmp_path / "whole" / "samples.npy")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for attempt in range(6):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / "a")], env=environment)
        time.sleep(0.25 + 0.12 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
    repair_folder(tmp_path / "a", workers=1)
    assert verify_folder(tmp_path / "a", workers=1) == []
    assert np.array_equal(np.load(tmp_path / "a" / "samples.npy"), rows)
    tars = {name: digest for name, digest in contents(tmp_path / "a").items() if name.endswith(".tar")}
    assert tars == {name: digest for name, digest in contents(tmp_path / "whole").items() if name.endswith(".tar")}
