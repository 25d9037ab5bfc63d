"""What pruning gives on one GPU: whole updates of ALBEF and CLIP, unpruned, `stage` and `query`, in one table.

    python benchmarks/gpu_step.py                                  # ViT-B/16, bf16, torch.compile; under 10 minutes
    python benchmarks/gpu_step.py --device cpu --size tiny         # the same way to the end, in a minute, anywhere

It needs the checkout, torch and what torch and transformers bring along (numpy, safetensors); nothing is read or
downloaded. Each backbone is two cases, timing and the search of the largest batch; each case is a process of its own
with a time limit, and leaves a JSON file in --out ($OUT, or gpu_step), so that a second call goes on where the first
was stopped. All variants of a case share weights and batch and take turns.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - the checkout need not be installed

from data_prep.errors import UserError  # noqa: E402
from pipeline.measure.bench import FLOPS_RULE  # noqa: E402
from pipeline.measure.bench_cases import REFERENCE, BenchConfig  # noqa: E402
from pipeline.measure.largest_batch import Bounds, Probe, search  # noqa: E402
from pipeline.measure.peak import PEAK_BF16_FLOPS  # noqa: E402
from pipeline.measure.update_bench import UpdateBench, UpdateConfig  # noqa: E402
from pipeline.measure.where import where  # noqa: E402

BACKBONES = ("albef", "clip")
KINDS = {"speed": 3.0, "largest": 2.0}
"""Kinds of cases, and what each may take of the time that is left, over the others."""
TEXT_LENGTH = {"albef": 25, "clip": 77}
VARIANTS = {"speed": {"albef": ("stage", "query", "query_momentum"), "clip": ("stage", "query")}}
"""Prunings that are held against none; with `_momentum` the momentum tower is pruned too, which CLIP has not."""
FEWER = ("stage", "query")
"""In the search for the largest batch: a momentum tower keeps nothing for the backward."""
BATCH = {"speed": {"albef": 128, "clip": 256}, "largest": {"albef": 64, "clip": 64}}
"""On a GPU; the search begins with the smaller one."""
CPU_BATCH = 4
GROUND = "ground"  # not a case: says where cases are measured
CPU_GIB = 0.6
GIB = 2**30
START_SECONDS = 10.0
"""Of a process, until it begins to measure."""
COMPILED = 0.8
"""Part of a case's time after which it is tried without torch.compile, if it has left nothing."""
SPARE = 0.06  # of the GPU's memory: the driver's, and what lies between tensors


def main() -> int:
    """Runs all cases, or as the process of one that one."""
    options = parse()
    try:
        return measure(options) if options.case else run_all(options)
    except UserError as error:
        print(f"gpu_step: {error}", file=sys.stderr)
        return 2


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=["cuda", "cpu"], default=found, help="(%(default)s)")
    parser.add_argument("--size", choices=["base", "small", "tiny"], default="base", help="of all towers (%(default)s)")
    parser.add_argument("--backbone", choices=BACKBONES, help="this one alone (both)")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no case goes on (%(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("OUT", "gpu_step")), help="folder (%(default)s)"
    )
    parser.add_argument("--batch", type=int, help="of timing; by default 128 of ALBEF and 256 of CLIP, on a CPU 4")
    parser.add_argument(
        "--memory-gib", type=float, help="for the largest batch; by default 94%% of the GPU's, 0.6 on a CPU"
    )
    text = "of torch.compile, or none; by default inductor, on a CPU eager, which finds breaks and makes nothing fast"
    parser.add_argument("--backend", choices=["inductor", "aot_eager", "eager", "none"], help=text)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    return parser.parse_args()


def config_of(options: argparse.Namespace, backbone: str, kind: str) -> UpdateConfig:
    """Sizes of a case.

    Raises:
        UserError: They cannot be measured.
    """
    on_gpu = options.device == "cuda"
    batch = BATCH[kind][backbone] if on_gpu else CPU_BATCH
    bench = BenchConfig(
        what="step",
        backbone=backbone,  # type: ignore[arg-type]
        model=options.size,
        variants=variants_of(backbone, kind),
        image_size=224 if options.size != "tiny" else 64,
        text_length=TEXT_LENGTH[backbone] if options.size != "tiny" else 8,
        batch=options.batch if options.batch is not None and kind == "speed" else batch,
        dtype="bfloat16" if on_gpu else "float32",
        device=options.device,
    )
    backend = options.backend or ("inductor" if on_gpu else "eager")
    return UpdateConfig(
        bench=bench,
        backend=None if backend == "none" else backend,
        most_rounds=40 if on_gpu else 6,  # only the way is tried on a CPU
    )


def variants_of(backbone: str, kind: str) -> tuple[str, ...]:
    """What is measured beside unpruned, in the table's order."""
    return VARIANTS[kind][backbone] if kind in VARIANTS else FEWER


def limit_of(options: argparse.Namespace) -> int:
    """Bytes that a batch may take; 0 for the GPU's own."""
    if options.memory_gib is not None and not options.memory_gib > 0:
        raise UserError(f"--memory-gib {options.memory_gib} must be above 0; leave it out for the whole GPU's")
    return int(GIB * (options.memory_gib or (0 if options.device == "cuda" else CPU_GIB)))


def cases(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Backbone and kind of each, in the order of running: what matters most comes first."""
    chosen = [backbone for backbone in BACKBONES if options.backbone in (None, backbone)]
    return [(backbone, kind) for kind in KINDS for backbone in chosen]


# One case, in a process of its own.


def measure(options: argparse.Namespace) -> int:
    """Measures a case and leaves its file, which grows by a row as each is there."""
    if options.case == GROUND:
        print(json.dumps(ground(options.device)))
        return 0
    backbone, kind = options.case.split("_")
    config, limit = config_of(options, backbone, kind), limit_of(options)
    path, begun = options.out / f"{options.case}.json", time.monotonic()
    result: dict[str, Any] = {"settings": settings(config, limit), **ground(options.device), "rows": []}
    config = replace(config, seconds=0.85 * options.seconds - START_SECONDS)
    for row in speed_rows(config) if kind == "speed" else largest_rows(config, limit):
        result["rows"].append(row)
        result["took_seconds"] = time.monotonic() - begun
        write(path, result)
    write(path, {**result, "complete": True})
    return 0


def speed_rows(config: UpdateConfig) -> Iterator[dict[str, Any]]:
    """Time and memory of each variant."""
    bench = UpdateBench(config)
    yield from bench.rows()


def largest_rows(config: UpdateConfig, limit: int) -> Iterator[dict[str, Any]]:
    """All batches run the same code, compiled for any shape: a compilation for each would take too long."""
    on_gpu = config.bench.device == "cuda"
    if on_gpu and not limit:
        limit = int((1 - SPARE) * torch.cuda.get_device_properties(0).total_memory)
    bench = UpdateBench(config, dynamic=config.backend is not None)
    for name in bench.names:
        yield {"name": name, **largest(bench, name, limit, 8 if on_gpu else 1), "not_compiled": bench.not_compiled}


def largest(bench: UpdateBench, name: str, limit: int, step: int) -> dict[str, Any]:
    """The largest batch of a variant within a limit, in steps.

    Raises:
        UserError: Not even the first that is tried fits.
    """

    def probe(size: int) -> Probe:
        peak = bench.peak_of(name, size)
        return Probe(size, peak is not None and peak <= limit, peak or 0)

    first = bench.config.bench.batch
    found = search(probe, Bounds(limit_bytes=limit, first=(first, 2 * first), step=step, probes=16))
    if found.largest is None:
        raise UserError(f"a batch of {first} does not fit into {limit / GIB:.2f} GiB; give --memory-gib more")
    over = None if found.next_up is None else found.next_up.batch
    probes = len(found.probes)
    return {
        "batch": found.largest.batch,
        "peak": found.largest.peak_bytes,
        "over": over,
        "probes": probes,
        "limit": limit,
    }


def settings(config: UpdateConfig, limit: int) -> dict[str, Any]:
    """What a result must be read with: one with others is measured anew."""
    return json.loads(json.dumps({**asdict(config.bench), "backend": config.backend, "limit": limit}))


def ground(device: str) -> dict[str, Any]:
    """Machine and versions: a result of others is measured anew too."""
    on = where(torch.device(device))
    about = {"processor": on["processor"], "cpus": on["cpus"], "torch": on["torch"], "cuda": torch.version.cuda}
    return {"device_name": on["device"], **about}


@cache
def ground_here(device: str) -> dict[str, Any]:
    """The same, asked of a process of its own: one that has looked at a GPU may hold memory that is measured."""
    if device == "cpu":
        return ground(device)
    command = [sys.executable, __file__, "--device", device, "--case", GROUND]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def earlier_result(path: Path) -> dict[str, Any] | None:
    """What an earlier call left; None where it left nothing that can be read."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write(path: Path, value: Mapping[str, Any]) -> None:
    """Replaces a JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(value, indent=1))
    beside.replace(path)


def say(text: str) -> None:
    """Tells how far it is."""
    print(text, file=sys.stderr, flush=True)


# All of them.


def run_all(options: argparse.Namespace) -> int:
    """Runs what is not there yet, each with its share of the time that is left, and prints the table."""
    if not options.minutes > 0:
        raise UserError(f"--minutes {options.minutes} must be above 0; 9 is usual")
    limit = limit_of(options)
    configs = {case: config_of(options, *case) for case in cases(options)}  # refuses before anything runs
    end = time.monotonic() + 60 * options.minutes
    found = {}
    for number, case in enumerate(configs):
        weights = [KINDS[kind] for _, kind in list(configs)[number:]]
        seconds = (end - time.monotonic()) * weights[0] / sum(weights)
        found[case] = run_case(options, case, settings(configs[case], limit), seconds)
    lines = table(found)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0 if all(result["rows"] for result in found.values()) else 1


def run_case(
    options: argparse.Namespace, case: tuple[str, str], wanted: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """A case's result: an earlier call's if it is of these settings, else measured; `fault` says what was amiss."""
    name = "_".join(case)
    path = options.out / f"{name}.json"
    earlier = earlier_result(path)
    if earlier is not None and earlier.get("settings") == wanted and earlier.get("complete"):
        here = ground_here(options.device)
        if {key: earlier.get(key) for key in here} == here:
            say(f"{name}: taken from {path}")
            return earlier
        there = ", ".join(str(earlier.get(key)) for key in here)
        say(f"{name}: {path} was measured on another machine or torch ({there}): once more")
    path.unlink(missing_ok=True)
    say(f"{name}: {seconds:.0f} s at most")
    compiles = wanted["backend"] is not None
    fault = start(options, name, COMPILED * seconds if compiles else seconds)
    if compiles and fault and not path.is_file():
        fault = f"with torch.compile it {fault}"
        if again := start(argparse.Namespace(**{**vars(options), "backend": "none"}), name, (1 - COMPILED) * seconds):
            fault += f", without it {again}"
    result: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"rows": []}
    return {**result, "fault": fault}


def start(options: argparse.Namespace, name: str, seconds: float) -> str:
    """Runs a case in a process of its own; what was amiss, in words, or nothing."""
    if seconds < 5:
        return "no time was left"
    given = {key: value for key, value in vars(options).items() if value is not None and key not in ("case", "seconds")}
    words = [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    command = [sys.executable, __file__, *words, "--case", name, "--seconds", f"{seconds:.0f}"]
    try:
        code = subprocess.run(command, timeout=seconds, check=False, stdout=sys.stderr).returncode
    except subprocess.TimeoutExpired:
        return f"ended after its {seconds:.0f} s"
    return f"ended with code {code}" if code else ""


# The table.

HEAD = f"{'':24}{'batch':>6}{'ms':>9}{'samples/s':>11}{'ratio (95%)':>22}{'FLOPs':>7}{'GiB':>7}{'MFU':>7}{'largest':>9}"


def table(found: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[str]:
    """A line for each backbone and variant, then how to read them."""
    lines = [HEAD]
    for backbone in dict.fromkeys(backbone for backbone, _ in found):
        speed, largest = found[backbone, "speed"], found[backbone, "largest"]
        by_name = {row["name"]: row for row in largest["rows"]}
        for name in (REFERENCE, *variants_of(backbone, "speed")):
            timed = next((row for row in speed["rows"] if row["name"] == name), None)
            lines.append(f"{backbone + ' ' + name:24}{time_cells(timed)}{batch_cells(by_name, name)}".rstrip())
    return [*lines, *notes(found)]


def time_cells(row: Mapping[str, Any] | None) -> str:
    """What timing found."""
    if row is None:
        return f"{'-':>6}{'-':>9}{'-':>11}{'-':>22}{'-':>7}{'-':>7}{'-':>7}"
    ratio = f"{row['ratio']:.3f}"
    if row["ratio_low"] is not None:
        ratio += f" ({row['ratio_low']:.3f}-{row['ratio_high']:.3f})"
    mfu = "-" if row["mfu"] is None else f"{row['mfu']:.1%}"
    return (
        f"{row['batch']:>6}{1000 * row['seconds']:>9.1f}{row['samples_per_second']:>11.1f}{ratio:>22}"
        f"{row['flops_ratio']:>7.3f}{row['peak_bytes'] / GIB:>7.2f}{mfu:>7}"
    )


def batch_cells(rows: Mapping[str, Mapping[str, Any]], name: str) -> str:
    """The largest batch, and how many times the unpruned one's it is."""
    if name not in rows:
        return f"{'-':>9}"
    ratio = f"x{rows[name]['batch'] / rows[REFERENCE]['batch']:.2f}" if REFERENCE in rows else ""
    return f"{rows[name]['batch']:>9}{ratio:>7}"


def notes(found: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[str]:
    """How the table is to be read, and what is amiss with it."""
    known = [result for result in found.values() if result["rows"]]
    lines = [
        "ms: of a whole update, median; ratio: times as fast as unpruned in the same round, median",
        f"FLOPs: the ratio that they promise ({FLOPS_RULE})",
        "an update: pixels to float, all towers and losses, backward, clipping, AdamW, momentum update, queue",
    ]
    if known:
        first = known[0]
        lines.append(f"{first['device_name']}, torch {first['torch']}, {first['settings']['dtype']}, {limits(known)}")
    lines += sorted({sizes(result) for result in known}) + sorted({compiled(result) for result in known})
    for case, result in found.items():
        if result.get("fault"):
            lines.append(f"{'_'.join(case)}: {result['fault']}")
    return lines


def limits(known: list[Mapping[str, Any]]) -> str:
    """Peaks and memory that shares are of."""
    name, dtype = known[0]["device_name"], known[0]["settings"]["dtype"]
    peak = next((peak for part, peak in PEAK_BF16_FLOPS.items() if part in name), None)
    said = (
        f"MFU of {peak / 1e12:.0f} TFLOP/s (NVIDIA's data sheet, dense bf16)"
        if peak and dtype == "bfloat16"
        else f"MFU left out: the peak of {name} in {dtype} is not known here"
    )
    gib = next((row["limit"] / GIB for result in known for row in result["rows"] if "limit" in row), None)
    return said if gib is None else f"{said}; largest batch within {gib:.1f} GiB"


def sizes(result: Mapping[str, Any]) -> str:
    """What an update is of."""
    set_to = result["settings"]
    return (
        f"{set_to['backbone']}: {set_to['model']}, {set_to['image_size']} px, texts of {set_to['text_length']} tokens"
    )


def compiled(result: Mapping[str, Any]) -> str:
    """Whether torch.compile made it."""
    reasons = {row["not_compiled"] for row in result["rows"]} - {""}
    backbone, backend = result["settings"]["backbone"], result["settings"]["backend"]
    if reasons:
        return f"{backbone}: NOT compiled ({'; '.join(sorted(reasons))})"
    return f"{backbone}: blocks by torch.compile, backend {backend}"


if __name__ == "__main__":
    sys.exit(main())
