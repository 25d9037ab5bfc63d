"""benchmarks/gpu_step.py to its end on the CPU, and what its table says."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu_step.py"
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
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(SCRIPT), *QUICK, "--out", str(out), *words]
    return subprocess.run(
        command, cwd=out, env=environment, capture_output=True, text=True, timeout=110, check=False
    )  # fmt: skip


def test_all_cases_run_to_their_end_and_a_second_call_takes_them_over(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    names = [f"{backbone} {name}" for backbone in ("albef", "clip") for name in ("unpruned", "stage", "query")]
    assert [" ".join(line.split()[:2]) for line in lines[1:7]] == names
    assert all(float(line.split()[4]) > 0 and line.split()[-1].startswith("x") for line in lines[1:7])
    assert "MFU left out: the peak of cpu in float32 is not known here" in done.stdout
    assert "albef: blocks by torch.compile, backend eager" in lines
    assert (tmp_path / "table.txt").read_text() == done.stdout
    found = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert len(found) == 4 and all(result["complete"] for result in found.values())
    for backbone in ("albef", "clip"):
        rows = {row["name"]: row for row in found[f"{backbone}_largest.json"]["rows"]}
        assert rows["query"]["batch"] > rows["unpruned"]["batch"] > 1
        assert all(row["over"] == row["batch"] + 1 and row["peak"] <= row["limit"] for row in rows.values())
    again = run(tmp_path)
    assert again.stderr.count("taken from") == 4 and again.stdout == done.stdout


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
    settings = {"dtype": "bfloat16", "backend": "inductor"}
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
