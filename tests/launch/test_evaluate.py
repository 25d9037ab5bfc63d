"""`trimline evaluate CKPT --task T`: one table, the same numbers on several processes, and mistakes in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.errors import UserError
from launch.cli import main
from launch.cli_evaluate import TASK_NAMES
from launch.local_processes import run_processes
from pipeline.evaluation.exported import TASKS
from pipeline.evaluation.opened import KINDS
from pipeline.exports import load_backbone, load_classification_model
from pipeline.process import Process
from pipeline.together import RankFailedError
from tests.launch.test_cli import trimline
from tests.launch.test_run import ROOT
from tests.pipeline.evaluation.exports import COLOURS, caption_export, export, split, statement_export

SCORES = ["TR R@1", "TR R@5", "TR R@10", "IR R@1", "IR R@5", "IR R@10", "R@10", "TR mean", "IR mean", "mean_recall"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluate")
    for name, count in (("test", 11), ("val", 5)):
        split(root / "data" / name, count)
    export(root / "albef")
    export(root / "meter", "meter")
    statement_export(root / "trimmed")
    return root


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main(["evaluate", *map(str, words), "--device", "cpu", "--json"]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def test_the_table_of_tasks_is_the_command_lines() -> None:
    assert tuple(TASKS) == TASK_NAMES and set(KINDS) == set(TASKS)


def test_the_documented_command_on_two_processes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [str(root / "albef"), "--task", "retrieval", "--data", str(root / "data"), "--rerank", "3"]
    more = ["--split", "test", "--processes", "2", "--batch-size", "1", "--device", "cpu", "--json"]
    done = trimline("evaluate", *given, *more)
    assert done.returncode == 0, done.stderr
    two, one = json.loads(done.stdout), answer(capsys, *given)
    assert two.pop("processes") == 2 and one.pop("processes") == 1
    assert two.pop("batch_size") == 1 and one.pop("batch_size") == 64
    assert two.pop("latency")["instances"] == one.pop("latency")["instances"] == 8  # those with a caption
    assert two == one


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize(("processes", "batch_size"), [(2, 1), (2, 64), (3, 1), (3, 64)])
def test_torchruns_processes_share_an_evaluation(
    root: Path, capsys: pytest.CaptureFixture[str], processes: int, batch_size: int
) -> None:
    given = [str(root / "albef"), "--task", "retrieval", "--data", str(root / "data"), "--rerank", "3"]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    words = ["-m", "launch", "evaluate", *given, "--batch-size", str(batch_size), "--device", "cpu", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*start, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    many, one = json.loads(done.stdout), answer(capsys, *given)  # one object: the first process alone prints
    assert (many.pop("processes"), one.pop("processes")) == (processes, 1)
    assert (many.pop("batch_size"), one.pop("batch_size")) == (batch_size, 64)
    assert many.pop("latency")["instances"] == one.pop("latency")["instances"]
    assert many == one


def test_processes_of_its_own_do_not_go_with_torchruns(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ["--task", "retrieval", "--data", root / "data", "--processes", "2", "--device", "cpu"]
    assert "torchrun has started 2" in refused(capsys, root / "albef", *words)


def test_one_table(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(root / "albef"), "--task", "retrieval", "--data", str(root / "data"), "--device", "cpu"]
    assert main(["evaluate", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "retrieval"
    assert all(name in lines[0] for name in ("score", "95% interval", "GMACs (5% to 95%)", "latency", "parameters"))
    assert [line.split("  ")[0] for line in lines[2:12]] == [name.replace("_", " ") for name in SCORES]
    count = sum(parameter.numel() for parameter in load_backbone(root / "albef").parameters())
    assert lines[2].split()[-2:] == ["ms", f"{count:,}"]
    assert lines[-1].startswith(f"11 images of {root / 'data/test'}; 20 captions of 8 images; latency")


def test_splits_by_name_or_folder(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [root / "albef", "--task", "retrieval"]
    first = answer(capsys, *given, "--data", root / "data", "--limit", "4")
    assert (first["split"], first["samples"]) == (str(root / "data/test"), 4)
    assert answer(capsys, *given, "--data", root / "data/test", "--limit", "4")["scores"] == first["scores"]
    other = answer(capsys, *given, "--data", root / "data", "--split", "val")
    assert (other["samples"], other["captions"]) == (5, 11)
    assert answer(capsys, *given, "--split", root / "data/val")["scores"] == other["scores"]


def test_a_trimmed_model_says_what_it_spent(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [root / "trimmed", "--task", "statement", "--data", root / "data"]
    found = answer(capsys, *given)
    assert found["samples"] == 22
    assert [score["metric"] for score in found["scores"]] == ["accuracy"]
    gmacs = found["gmacs"]
    assert gmacs["low"] <= gmacs["mean"] <= gmacs["high"] and gmacs["std"] > 0
    model, _ = load_classification_model(root / "trimmed")
    assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_a_model_is_held_against_another_one_on_the_same_instances(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, given = tmp_path / "new" / "kept.npz", [root / "albef", "--task", "retrieval", "--data", root / "data"]
    first = answer(capsys, *given, "--outcomes", kept)["scores"]
    other = answer(capsys, *given, "--rerank", "0", "--against", kept)["scores"]
    for one, two in zip(first, other, strict=True):
        assert two["difference"]["value"] == pytest.approx(two["value"] - one["value"])
        assert two["difference"]["low"] <= two["difference"]["value"] <= two["difference"]["high"]
    assert any(two["difference"]["low"] < 0 < two["difference"]["high"] for two in other)
    assert main(["evaluate", *map(str, given), "--against", str(kept), "--device", "cpu"]) == 0
    head, _, line, *_ = capsys.readouterr().out.splitlines()
    assert "95% interval  " in head and "  difference" in head and "+0.00 (+0.00 to +0.00)" in line
    words = ["--data", root / "data", "--device", "cpu", "--against"]
    others = answer(capsys, *given[:3], *words, kept, "--split", "val")  # the scores are told all the same
    assert "two models were not judged on the same instances: 4 are only there (s10#0, " in others["not_compared"]
    assert {score["difference"] for score in others["scores"]} == {None}
    said = answer(capsys, root / "trimmed", "--task", "statement", *words, kept)["not_compared"]
    assert "kept.npz keeps nothing of accuracy; give what --outcomes wrote of this task" in said
    before = kept.read_bytes()
    assert "are the same file" in refused(capsys, *given, *words, kept, "--outcomes", kept)
    assert kept.read_bytes() == before
    np.save(tmp_path / "other.npy", np.zeros(3))
    assert "does not tell what became" in refused(capsys, *given, *words, tmp_path / "other.npy")
    kept.write_bytes(before[:99])
    assert "does not tell what became" in (said := refused(capsys, *given, *words, kept))
    assert said.endswith("; write it anew with --outcomes\n")


def test_zero_shot_and_precision(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "classes.txt").write_text("\n".join(COLOURS) + "\n")
    (tmp_path / "templates.txt").write_text("a photo of a {}\ncaption of {}\n\n")
    given = [root / "albef", "--task", "zero_shot", "--data", root / "data", "--label-field", "number"]
    given += ["--classes", tmp_path / "classes.txt", "--templates", tmp_path / "templates.txt"]
    found = answer(capsys, *given)
    assert (found["classes"], found["templates"], found["samples"]) == (3, 2, 11)
    assert answer(capsys, *given, "--precision", "bf16")["precision"] == "bf16"
    assert main(["evaluate", *map(str, given), "--device", "cpu"]) == 0
    assert "3 classes, guessing gives 33.33" in capsys.readouterr().out


@pytest.mark.timeout(120)
def test_captions_are_the_same_on_two_processes_and_written_where_nothing_can_score_them(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no Java
    given = [caption_export(tmp_path / "captioner"), "--task", "captioning", "--data", root / "data"]
    assert "install a Java runtime" in refused(capsys, *given)
    long = refused(capsys, *given, "--max-length", "40", "--predictions", tmp_path / "x.json")
    assert "max_length=40 is more than the 10 tokens" in long
    one, more = tmp_path / "one.json", tmp_path / "more.json"
    first = answer(capsys, *given, "--predictions", one)
    second = answer(capsys, *given, "--processes", "2", "--batch-size", "2", "--predictions", more)
    assert (first["samples"], first["search"]["max_length"]) == (11, 9)
    assert first["unscored"] and not first["scores"]
    for key in ("scores", "gmacs", "samples", "parameters"):
        assert first[key] == second[key]
    said = json.loads(one.read_text())
    assert one.read_bytes() == more.read_bytes() and [each["image_id"] for each in said] == list(range(11))
    assert len({each["caption"] for each in said}) > 1
    words = [*given, "--predictions", one, "--beams", "1", "--device", "cpu"]
    assert main(["evaluate", *map(str, words)]) == 0
    assert "not scored: caption metrics need Java" in capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["evaluate", *map(str, words)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1, told
    return told


def test_mistakes_are_told_in_one_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "twice.txt").write_text("red\nred\n")
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("model.safetensors", "config.json"):
        (bare / name).write_bytes((root / "albef" / name).read_bytes())
    split(tmp_path / "silent" / "test", 3, captions=[0])
    split(tmp_path / "none" / "test", 0)
    data = root / "data"
    zero_shot = [root / "albef", "--task", "zero_shot", "--data", data, "--label-field", "colour"]
    cases: dict[str, list[object]] = {
        "has no model.safetensors; give a folder": [tmp_path, "--task", "retrieval", "--data", data],
        "holds a 'backbone' model, which cannot do statement; --task retrieval or zero_shot can": [
            root / "albef", "--task", "statement", "--data", data
        ],
        "holds a 'statement' model, which cannot do retrieval; --task statement can": [
            root / "trimmed", "--task", "retrieval", "--data", data
        ],
        "no such folder": [root / "albef", "--task", "retrieval", "--data", tmp_path / "gone"],
        "no split 'dev': ": [root / "albef", "--task", "retrieval", "--data", data, "--split", "dev"],
        "has the splits test, val": [root / "albef", "--task", "retrieval", "--data", data, "--split", "dev"],
        "needs --data DIR": [root / "albef", "--task", "retrieval"],
        "none of 3 images has a caption": [root / "albef", "--task", "retrieval", "--data", tmp_path / "silent"],
        "has no samples": [root / "albef", "--task", "retrieval", "--data", tmp_path / "none"],
        "name it with --tokenizer DIR": [bare, "--task", "retrieval", "--data", data],
        "--rerank -1 must be": [root / "albef", "--task", "retrieval", "--data", data, "--rerank", "-1"],
        "--batch-size 0 must be": [root / "albef", "--task", "retrieval", "--data", data, "--batch-size", "0"],
        "--limit 0 must be": [root / "albef", "--task", "retrieval", "--data", data, "--limit", "0"],
        "--processes 0 must be": [root / "albef", "--task", "retrieval", "--data", data, "--processes", "0"],
        "evaluates one export folder, and 2": [root / "albef", root / "meter", "--task", "retrieval", "--data", data],
        "METER has no contrastive features": [root / "meter", *zero_shot[1:]],
        "needs --label-field": zero_shot[:-2],
        "--beams is for --task captioning": [root / "albef", "--task", "retrieval", "--data", data, "--beams", "2"],
        "there is no server for retrieval": [
            root / "albef", "--task", "retrieval", "--data", data, "--predictions", tmp_path / "x.json"
        ],
        "x.json must end in .npz; rename it": [
            root / "albef", "--task", "retrieval", "--data", data, "--outcomes", tmp_path / "x.json"
        ],
        "--against gone: no such file": [root / "albef", "--task", "retrieval", "--data", data, "--against", "gone"],
        "is empty; write one a line": [*zero_shot, "--classes", tmp_path / "empty.txt"],
        "'red' twice": [*zero_shot, "--classes", tmp_path / "twice.txt"],
        "cannot be read as a text file": [*zero_shot, "--templates", tmp_path / "gone.txt"],
        "is a folder, and a run is configured by YAML files": [root / "albef"],
    }  # fmt: skip
    for said, words in cases.items():
        assert said in refused(capsys, *words)
    with pytest.raises(SystemExit) as left:
        main(["evaluate", str(root / "albef"), "--task", "vision", "--data", str(data)])
    assert left.value.code == 2
    assert "invalid choice: 'vision'" in capsys.readouterr().err


def _fails_on_one(what: str, process: Process) -> int:
    if process.rank == 1:
        if what == "dies":
            import os

            os._exit(3)
        raise UserError("mine")
    import torch.distributed as dist

    dist.barrier()
    return process.rank


@pytest.mark.parametrize(
    ("what", "error", "said"),
    [("refuses", UserError, "^mine$"), ("dies", RankFailedError, "rank 1: the process ended without a word")],
)
def test_ranks_that_fail_take_the_others_with_them(what: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        run_processes(_fails_on_one, (what,), [Process(rank=rank, world_size=2) for rank in range(2)])
