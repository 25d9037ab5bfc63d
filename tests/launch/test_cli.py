"""The command line as its users meet it: in a process of its own."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import launch
from data_prep.sources import SOURCES, source_module
from launch.cli import _log_to_stderr, _split, command_parser, main
from launch.job import LogFile
from tests.data_prep.samples import picture

ROOT = Path(launch.__file__).resolve().parent.parent
RECIPE = "tests/launch/tiny.yaml"


def trimline(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "launch", *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize(
    "command",
    [
        "run",
        "pretrain",
        "trim",
        "evaluate",
        "shard",
        "download",
        "index",
        "verify",
        "stats",
        "report",
        "status",
        "bench vision",
        "bench step",
        "bench shard",
        "exclusions",
        "flops",
        "compare",
        "analyse leak",
        "import",
        "export",
        "cluster submit",
        "cluster status",
        "cluster logs",
        "cluster stop",
    ],
)
def test_every_command_has_help_with_an_example(command: str) -> None:
    done = trimline(*command.split(), "--help")
    assert done.returncode == 0
    assert f"example: trimline {command} " in done.stdout
    assert "--json" in done.stdout


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_says_which_files_it_wants_and_which_options_it_has(
    source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["shard", source, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"example: trimline shard {source} " in text
    assert "--out" in text and "--json" in text
    assert ("--image_size" in text, "--regions.min_side" in text, "--columns.caption" in text) == (
        source == "shapes", source == "vg", source == "table",
    )  # fmt: skip
    data = getattr(source_module(source), "DATA", None)
    for one in [file for layout in data.layouts for file in layout.files] if data else []:
        assert one.names[0] in text and one.what in text
    assert max(map(len, text.splitlines())) < 200


def test_the_help_of_shard_lists_the_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["shard", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(any(line.startswith(f"  {source} ") for line in lines) for source in SOURCES)


def test_lists_of_files_reach_the_source_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for number, name in enumerate(("a b.jpg", "c.jpg")):
        (tmp_path / "pictures" / name).write_bytes(picture(number, 8, ".jpg"))
    for part, name in (("train", "a b"), ("val", "c")):
        (tmp_path / f"{part}.csv").write_text(f"file,caption\n{name}.jpg,it is\nnone.jpg,x\n")
    out = str(tmp_path / "out")
    files = [f"{part}={tmp_path}/{part}.csv" for part in ("train", "val")]
    words = ["table", "--annotations", *files, "--images", str(tmp_path / "pictures"), "--columns.image", "file"]
    done = trimline("shard", *words, "--columns.keep", "file", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    account = json.loads(done.stdout)
    assert {split: of["written"] for split, of in account["splits"].items()} == {"train": 1, "val": 1}
    assert account["skipped"] == {"picture missing": 2}
    assert trimline("verify", out).returncode == 0


@pytest.mark.parametrize("verbose", [False, True])
def test_tracebacks_and_stacks_are_the_logs_and_the_screen_has_a_line(
    verbose: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, log, file = logging.getLogger(), logging.getLogger("launch"), LogFile(tmp_path / "log.txt")
    level = root.level
    with monkeypatch.context() as patched:
        patched.setattr(root, "handlers", [])
        _log_to_stderr(verbose)
        root.handlers.insert(0, file)  # the first to format a record leaves the traceback in it
        try:
            raise OSError("Stale file handle")
        except OSError as error:
            log.warning("trying again: %s", error, exc_info=error)
        log.error("this process is stuck", stack_info=True)
        root.setLevel(level)
    file.close()
    kept, said = (tmp_path / "log.txt").read_text(), capsys.readouterr().err
    for text in ("Traceback (most recent", "Stack (most recent"):
        assert text in kept and (text in said) is verbose
    if not verbose:
        assert said == "trying again: Stale file handle\nthis process is stuck\n"


def test_the_version_is_printed() -> None:
    assert trimline("--version").stdout.startswith("trimline 0.")


def test_help_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from launch.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted({'torch', 'ray', 'deepspeed', 'jsonargparse'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "configs/runs/none.yaml"], "configs/runs/demo.yaml"),
        (["run"], "no configuration given"),
        (["run", RECIPE, "--pretrain.loop.sampels", "3"], "did you mean pretrain.loop.samples?"),
        (["run", RECIPE, "--seed", "many"], "seed"),
        (["run", RECIPE, "--data.root", "--seed", "1"], "data.root"),
        (["run", RECIPE, "--data.name", "imagenet"], "imagenet"),
        (["run", RECIPE, "--data.name", "nlvr", "--data.sizes", "{}"], "data.root is not given"),
        (["run", RECIPE, "--data.name", "nlvr", "--data.sizes", "{}", "--data.root", "nowhere"], "data.root=nowhere"),
        (["run", RECIPE, "--launcher", "ray", "--cluster.workers", "500"], "500"),
        (["run", RECIPE, "--pretrain.loop.global_batch", "33"], "pretrain.loop.global_batch=33"),
        (["run", RECIPE, "--out", str(ROOT / "Makefile")], "is a file"),
        (["run", RECIPE, "--out", str(ROOT / "Makefile" / "run")], "Makefile is a file"),
        (["run", RECIPE, "--out", "x" * 300], "File name too long"),
        (["run", RECIPE, "--budget.minutes", ".nan"], "budget.minutes=nan must be above 0"),
        (["run", RECIPE, "--budget.minutes", ".inf"], "budget.minutes=inf must be above 0 and finite"),
        (["run", RECIPE, "--trim.loop.samples", "0"], "trim.loop.samples=0 must be at least 1"),
        (["run", RECIPE, "--loader.workers", "-1"], "loader.workers=-1 must be 0 or more"),
        (["shard", "shapes"], "out is missing"),
        (["shard", "imagenet", "--out", "x"], "imagenet"),
        (["shard", "shapes", "--out", "x", "--exclude", "nowhere.txt"], "nowhere.txt"),
        (["run", RECIPE, "--data.clean.max_aspect", "0"], "max_aspect"),
        (["run", RECIPE, "--data.clean.exclude", "[nowhere.txt]"], "nowhere.txt"),
        (["shard", "shapes", "--out", "x", "--clean.max_aspect", "0"], "max_aspect"),
        (["shard", "shapes", "--out", "nosuch://x"], "nosuch"),
        (["shard", "shapes", "--out", "x", "--address", "auto"], "--executor ray"),
        (["shard", "shapes", "--out", "x", "--workers", "0"], "workers=0 must be at least 1"),
        (["shard", "shapes", "--out", "x", "--shard-samples", "0"], "trimline: shard_samples=0 must be at least 1"),
        (["exclusions", "nowhere", "--out", "x"], "nowhere"),
        (["shard", "imagenet", "--help"], "use one of shapes, nlvr"),
        (["shard", "coco"], "coco wants captions_*2017.json"),
        (["shard", "coco", "--annotations", "a.json", "b.json", "--images", "c.zip"], "a.json is no file"),
        (["shard", "coco", "--annotation", "a.json"], "did you mean annotations?"),
        (["shard", "vg", "--regions.min_share", "7"], "trimline: regions.min_share=7.0"),
        (["verify", "nowhere"], "nowhere"),
        (["index", "nowhere"], "nowhere"),
        (["report", "nowhere"], "nowhere"),
        (["status", "nowhere"], "nowhere"),
        (["bake"], "bake"),
        (["status"], "RUN"),
        (["report", "x", "--speed", "3"], "--speed"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if words[0] in ("run", "shard") and "--out" not in words and words != ["shard", "shapes"]:
        words = [*words, "--out", str(tmp_path / "run")]
    assert exit_code(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.strip().splitlines()
    assert len(lines) == 1, printed.err
    assert expected in lines[0]
    assert not (tmp_path / "run").exists()


def exit_code(words: list[str]) -> int:
    """Runs a command in this process, which has torch loaded already."""
    try:
        return main(words)
    except SystemExit as end:
        return int(end.code or 0)


def test_a_mistake_shows_no_more_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = trimline("run", RECIPE, "--launcher=ray", "--cluster.workers=500", "--out", str(tmp_path / "run"))
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_mistake_is_json_too_where_json_is_asked_for() -> None:
    done = trimline("status", "nowhere", "--json")
    assert done.returncode == 2
    assert "nowhere" in json.loads(done.stdout)["error"]


def test_a_folder_with_other_files_is_not_taken_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for fresh in ([], ["--fresh"]):
        done = trimline("run", RECIPE, "--out", str(tmp_path), *fresh)
        assert done.returncode == 2
        assert "holds other files (thesis.txt)" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_the_printed_config_reads_back(tmp_path: Path) -> None:
    first = trimline("run", RECIPE, "--seed", "7", "--print_config")
    assert first.returncode == 0, first.stderr
    (tmp_path / "again.yaml").write_text(first.stdout)
    again = trimline("run", "--config", str(tmp_path / "again.yaml"), "--print_config")
    assert again.stdout == first.stdout
    assert "seed: 7" in first.stdout


def test_targets_of_trim_may_be_given_without_the_section(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for words in (["--targets", "[1.0, 2.5x]"], ["--targets=[1.0, 2.5x]"], ["--trim.targets", "[1.0, 2.5x]"]):
        assert exit_code(["trim", RECIPE, *words, "--print_config"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] == shown[2] and "- 2.5x" in shown[0]
    assert exit_code(["run", RECIPE, "--targets", "[1.0]", "--print_config"]) == 2  # only of what ends with it
    assert exit_code(["trim", RECIPE, "configs/trim/front.yaml", "--print_config"]) == 0
    assert "  targets:\n  - 1.0\n  - 1.5\n  - 2.0\n  - 2.5\n" in capsys.readouterr().out


def test_shards_are_written_checked_and_indexed(tmp_path: Path) -> None:
    out = str(tmp_path / "shapes")
    words = ["--sizes", '{"train": 6, "val": 2, "test": 2, "unseen": 2}', "--image_size", "32"]
    done = trimline("shard", "shapes", "--out", out, *words, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["splits"]["train"]["written"] == 6
    sound = trimline("verify", out)
    assert (sound.returncode, sound.stdout) == (0, f"{out}: all is well: 12 samples in 4 shards\n")
    assert json.loads(trimline("index", f"{out}/train", "--json").stdout)["written"] == 6
    shard = tmp_path / "shapes" / "train" / "00000.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 255
    shard.write_bytes(data)
    broken = trimline("verify", out)
    assert broken.returncode == 1
    assert "00000.tar" in broken.stdout


@pytest.mark.parametrize("words", [["verify"], ["verify", "--repair"], ["stats"], ["index"]])
def test_shards_that_cannot_be_read_are_no_faulty_ones(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "00000.tar").symlink_to("/proc/self/mem")  # which can be opened and not read
    (tmp_path / "index.json").mkdir()
    assert exit_code([*words, str(tmp_path)]) == 2
    assert "cannot" in capsys.readouterr().err
    assert (tmp_path / "index.json").is_dir()


def test_what_is_tested_on_is_left_out_of_what_is_trained_on(tmp_path: Path) -> None:
    sizes = ["--sizes.train", "0", "--sizes.val", "0", "--sizes.unseen", "0", "--image_size", "32"]
    test, listed = str(tmp_path / "test"), str(tmp_path / "list.txt")
    assert trimline("shard", "shapes", "--out", test, *sizes, "--sizes.test", "6").returncode == 0
    done = trimline("exclusions", test, "--out", listed, "--json")
    assert (json.loads(done.stdout)["samples"], done.returncode) == (6, 0)
    more = ["--exclude", listed, "--max-side", "24", "--clean.max_caption", "4", "--clean.min_side", "16"]
    again = trimline("shard", "shapes", "--out", str(tmp_path / "b"), *sizes, "--sizes.test", "10", *more, "--json")
    account = json.loads(again.stdout)
    assert account["skipped"] == {"excluded by id": 6}
    assert account["captions"]["too long"] > 0
    assert trimline("verify", str(tmp_path / "b")).returncode == 0


@pytest.mark.parametrize(
    ("words", "own", "overrides"),
    [
        (["run", "a.yaml", "--seed", "3"], ["run", "a.yaml"], ["--seed", "3"]),
        (["run", "--seed", "3", "a.yaml", "--json"], ["run", "a.yaml", "--json"], ["--seed", "3"]),
        (["run", "--seed=3", "a.yaml"], ["run", "a.yaml"], ["--seed=3"]),
        (["run", "--config", "a.yaml", "--fresh"], ["run", "--config", "a.yaml", "--fresh"], []),
        (["run", "a.yaml", "--data.root"], ["run", "a.yaml"], ["--data.root"]),
        (["run", "a.yaml", "--data.root", "--out", "x"], ["run", "a.yaml"], ["--data.root", "--out", "x"]),
        (["status", "--seed", "3"], ["status", "--seed", "3"], []),
        (["run", "-h"], ["run", "-h"], []),
        (["trim", "a.yaml", "--targets", "[2.0]", "--seed=1"], ["trim", "a.yaml", "--targets", "[2.0]"], ["--seed=1"]),
        (["run", "a.yaml", "--targets", "[2.0]"], ["run", "a.yaml"], ["--targets", "[2.0]"]),
        (["run", "a.yaml", "--take-from", "b"], ["run", "a.yaml", "--take-from", "b"], []),
        (["run", "--print_config", "a.yaml"], ["run", "--print_config", "a.yaml"], []),
        (
            ["shard", "coco", "--images", "a b", "c", "--seed", "3"],
            ["shard", "coco"],
            ["--seed", "3", "--images", '["a b", "c"]'],
        ),
        (
            ["shard", "--images=a", "--json", "coco", "--images", "b"],
            ["shard", "--json", "coco"],
            ["--images", '["a", "b"]'],
        ),
        ([], [], []),
    ],
)
def test_overrides_are_told_from_own_words(words: list[str], own: list[str], overrides: list[str]) -> None:
    assert _split(words) == (own, overrides)


@pytest.mark.parametrize(
    ("command", "spellings", "name", "value"),
    [
        ("run a.yaml", ["--take-from b", "--take_from b", "--take_from=b"], "take_from", Path("b")),
        ("run a.yaml", ["--print-config", "--print_config"], "print_config", True),
        ("evaluate x --task vqa", ["--batch-size 3", "--batch_size=3"], "batch_size", 3),
        ("cluster submit a.yaml", ["--take-from b", "--take_from b"], "take_from", "b"),
        ("verify x", ["--no-decode", "--no_decode"], "decode", False),
        ("bench vision", ["--no-compile"], "compile", False),
    ],
)
def test_options_are_taken_with_hyphens_and_with_underscores(
    command: str, spellings: list[str], name: str, value: object
) -> None:
    for spelling in spellings:
        own, overrides = _split([*command.split(), *spelling.split()])
        assert overrides == [] and getattr(command_parser().parse_args(own), name) == value


def test_a_commands_help_spells_its_own_options_one_way_and_says_where_keys_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for command in ("run", "pretrain", "trim", "evaluate", "compare", "scale", "cluster submit", "shard"):
        assert exit_code([*command.split(), "--help"]) == 0
        own, _, keys = capsys.readouterr().out.partition("\nkeys: docs/reference/config.md")
        assert keys, command
        assert command == "shard" or re.findall(r"--[a-z]+_\w+", own) == []
