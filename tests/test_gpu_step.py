"""benchmarks/gpu_step.py to its end on the CPU, and what its table says."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline.measure.bench_cases import random_batch

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu_step.py"
LACKING = [
    "PIL", "cv2", "deepspeed", "fsspec", "jsonargparse", "pyarrow", "ray", "simplejpeg", "tokenizers", "wandb",
    "webdataset",
]  # fmt: skip
QUICK = ["--device", "cpu", "--size", "tiny", "--minutes", "5"]


@pytest.fixture(scope="module")
def gpu_step() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("gpu_step", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path


def run(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Without the checkout on the path, and as if what a GPU machine may lack were not installed."""
    hook = out / "hook"
    hook.mkdir(exist_ok=True)
    (hook / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({LACKING}))\n")
    command = [sys.executable, str(SCRIPT), *QUICK, "--out", str(out), *words]
    environment = {**os.environ, "PYTHONPATH": str(hook)}
    return subprocess.run(
        command, cwd=out, env=environment, capture_output=True, text=True, timeout=280, check=False
    )  # fmt: skip


def check(done: subprocess.CompletedProcess[str], out: Path, backbones: tuple[str, ...]) -> None:
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    prunings = {"albef": ("stage", "query", "query_momentum"), "clip": ("stage", "query")}
    names = [f"{backbone} {name}" for backbone in backbones for name in ("unpruned", *prunings[backbone])]
    rows = lines[1 : 1 + len(names)]
    assert [" ".join(line.split()[:2]) for line in rows] == names
    assert all(float(line.split()[4]) > 0 for line in rows)
    assert all(line.split()[-1].startswith("-" if "momentum" in line else "x") for line in rows)
    assert all(f"{backbone}: tiny, 64 px, texts of 8 tokens" in lines for backbone in backbones)
    assert "MFU left out: the peak of cpu in float32 is not known here" in done.stdout
    assert [line for line in lines if "torch.compile" in line] == [
        f"{backbone}: blocks by torch.compile, backend eager" for backbone in backbones
    ]
    assert (out / "table.txt").read_text() == done.stdout
    found = {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}
    assert sorted(found) == sorted(f"{b}_{kind}" for b in backbones for kind in ("speed", "largest"))
    for name, result in found.items():
        by_name = {row["name"]: row for row in result["rows"]}
        assert result["complete"] and len(by_name) == 3 + (name == "albef_speed")
        if name.endswith("largest"):
            assert by_name["query"]["batch"] > by_name["unpruned"]["batch"] > 1
            assert all(row["over"] == row["batch"] + 1 and row["peak"] <= row["limit"] for row in by_name.values())


def test_albef_runs_to_its_end(tmp_path: Path) -> None:
    check(run(tmp_path, "--backbone", "albef"), tmp_path, ("albef",))


def test_a_backbone_runs_to_its_end_and_a_second_call_takes_it_over(
    gpu_step: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--backbone", "clip", "--memory-gib", "0.3"]
    done = run(tmp_path, *words)
    check(done, tmp_path, ("clip",))
    monkeypatch.setattr(sys, "argv", ["gpu_step", *QUICK, "--out", str(tmp_path), *words])
    assert gpu_step.main() == 0
    said = capsys.readouterr()
    assert said.err.count("taken from") == 2 and said.out == done.stdout


def test_a_result_of_another_machine_or_torch_is_measured_again(
    gpu_step: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    started: list[str] = []
    monkeypatch.setattr(gpu_step, "start", lambda options, name, seconds: started.append(name) or "")
    monkeypatch.setattr(sys, "argv", ["gpu_step", *QUICK, "--out", str(tmp_path)])
    case, wanted, path = ("clip", "speed"), {"backend": None}, tmp_path / "clip_speed.json"
    there = {"settings": wanted, **gpu_step.ground("cpu"), "rows": [1], "complete": True}

    def found(text: str) -> dict[str, Any]:
        path.write_text(text)
        result: dict[str, Any] = gpu_step.run_case(gpu_step.parse(), case, wanted, 60.0)
        return result

    assert found(json.dumps(there)) == there and not started
    for changed in ({"torch": "1.0"}, {"device_name": "NVIDIA H100 80GB HBM3"}, {"processor": "Another CPU"}):
        capsys.readouterr()
        assert found(json.dumps({**there, **changed})) == {"rows": [], "fault": ""} and not path.exists()
        assert "was measured on another machine or torch (" in capsys.readouterr().err
    found("{")  # cut short
    assert started == ["clip_speed"] * 4


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_both_backbones_run_to_their_end(tmp_path: Path) -> None:
    check(run(tmp_path), tmp_path, ("albef", "clip"))


def test_what_cannot_be_compiled_is_measured_as_it_is(gpu_step: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> None:
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(sys, "argv", ["gpu_step", *QUICK])
    config = replace(gpu_step.config_of(gpu_step.parse(), "clip", "speed"), backend=fail, most_rounds=6)
    bench = gpu_step.UpdateBench(config)
    batch = random_batch(config.bench)
    assert bench.warm_up("query", batch) > 0
    assert bench.not_compiled.endswith("RuntimeError: no compiler")
    assert bench.warm_up("stage", batch) > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--batch", "1"], "bench.batch=1 must be at least 2"),
        (["--memory-gib", "-1"], "--memory-gib -1.0 must be above 0"),
        (["--minutes", "0"], "--minutes 0.0 must be above 0"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    words: list[str], said: str, gpu_step: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_step", *QUICK, "--out", str(tmp_path), *words])
    assert gpu_step.main() == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0]
    assert not list(tmp_path.iterdir())


def speed(name: str, **more: Any) -> dict[str, Any]:
    row = {
        "name": name, "batch": 128, "seconds": 0.25, "samples_per_second": 512.0, "ratio": 1.0, "ratio_low": 1.0,
        "ratio_high": 1.0, "flops_ratio": 1.0, "peak_bytes": 3 * 2**30, "mfu": 0.41, "not_compiled": "",
    }  # fmt: skip
    return {**row, **more}


def test_the_table_says_what_is_missing_and_why(gpu_step: ModuleType) -> None:
    about = {"device_name": "NVIDIA H100 80GB HBM3", "torch": "2.11"}
    settings = {
        "dtype": "bfloat16", "backend": "inductor", "model": "base", "image_size": 224, "text_length": 25,
    }  # fmt: skip
    timed = {**about, "settings": {**settings, "backbone": "albef"}}
    timed["rows"] = [speed("unpruned"), speed("query", ratio=1.3, ratio_low=1.29, ratio_high=1.31)]
    broken = {**about, "settings": {**settings, "backbone": "clip"}}
    broken["rows"] = [speed("unpruned", not_compiled="InductorError: no compiler")]
    found = {
        ("albef", "speed"): timed,
        ("clip", "speed"): broken,
        ("albef", "largest"): {"rows": [], "fault": "ended after its 60 s"},
        ("clip", "largest"): {"rows": [], "fault": "no time was left"},
    }
    text = gpu_step.table(found)
    assert " ".join(text[1].split()) == "albef unpruned 128 250.0 512.0 1.000 (1.000-1.000) 1.000 3.00 41.0% -"
    assert text[2].split() == ["albef", "stage", *["-"] * 8]
    assert "1.300 (1.290-1.310)" in text[3]
    assert any("MFU of 989 TFLOP/s (NVIDIA's data sheet, dense bf16)" in line for line in text)
    assert "clip: NOT compiled (InductorError: no compiler)" in text
    assert text[-2:] == ["albef_largest: ended after its 60 s", "clip_largest: no time was left"]
