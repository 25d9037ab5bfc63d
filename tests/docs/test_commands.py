"""The documentation's commands are run: as they stand, on tiny files, or with a few values that make them small.

What is not run is marked in the text as needing a cluster, GPUs or the internet, or is run by a test of its own.
Commands of a section (of a guide) are run in their order in one folder. Those that train are for `pytest -m slow`.
"""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from pipeline.metrics.captions import missing_for_captions
from tests.docs.elsewhere import runs
from tests.docs.pages import PAGES, PROGRAMS, Command, commands_of
from tests.docs.sandbox import copied, downloaded, filled_in, furnish, made_small

ELSEWHERE = {
    "make demo": "tests/launch/test_demo.py",
    "trimline run configs/runs/nlvr.yaml": "tests/launch/test_real_data.py",
    "trimline run configs/runs/flickr8k.yaml": "tests/launch/test_real_data.py",
    "trimline download": "tests/launch/test_download.py",
    "trimline cluster submit": "tests/launch/cluster/test_jobs.py",
    "trimline cluster status": "tests/launch/cluster/test_jobs.py",
    "trimline cluster logs": "tests/launch/cluster/test_jobs.py",
    "trimline cluster stop": "tests/launch/cluster/test_jobs.py",
    "trimline bench launch": "tests/launch/test_bench_launch.py",
    "trimline report COMPARISON": "tests/launch/report/test_comparison.py",
    "trimline scale": "tests/launch/test_scale_runs.py",
    "trimline evaluate runs/captions/stages/trim-captioning-2.0x/export --task captioning": (
        "tests/launch/test_evaluate.py"
    ),
}
"""Beginning of a command -> the test that runs it, where what it needs takes more than a folder of tiny files."""
_QUICK = frozenset({"shard", "draw", "index", "verify", "stats", "exclusions", "flops", "score"})
_OTHERS = PROGRAMS - {"trimline"}
Section = tuple[str, str]


COMMANDS = [command for page in PAGES for command in commands_of(page)]


def sections() -> dict[Section, list[Command]]:
    """Commands that are run here, by page and heading."""
    found: dict[Section, list[Command]] = {}
    for command in COMMANDS:
        runs = command.needs is None and command.words[0] not in _OTHERS and "--help" not in command.words
        if runs and not any(command.text.startswith(known) for known in ELSEWHERE):
            found.setdefault(unit(command), []).append(command)
    return found


def unit(command: Command) -> Section:
    """What is run in one folder: a section, or the whole page where sections build on each other."""
    whole = command.page.startswith(("docs/guides/", "docs/tasks.md"))
    return command.page, "" if whole else command.heading


SECTIONS = sections()


def is_quick(command: Command) -> bool:
    """Without torch, a run or Java."""
    return command.words[1] in _QUICK and "runs/" not in command.text and "score captions" not in command.text


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All files that commands name, made once."""
    folder = tmp_path_factory.mktemp("furnished")
    furnish(folder)
    return folder


@pytest.fixture
def folder(furnished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands are given in."""
    shutil.copytree(furnished, tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    monkeypatch.setenv("HOME", str(tmp_path / "there/home"))
    return tmp_path / "there"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's run folder, of a tiny model."""
    folder = tmp_path_factory.mktemp("trained")
    words = made_small(["run", "configs/runs/demo.yaml"], folder)
    assert main([*words, "--out", str(folder / "runs/demo")]) == 0
    return folder / "runs/demo"


def execute(command: Command, folder: Path) -> None:
    missing = missing_for_captions() if "caption" in command.text else None
    if missing and command.words[1] not in _QUICK - {"score"}:
        pytest.skip(missing)
    words = [word.replace("~", str(folder / "home"), 1) for word in filled_in(command.words[1:])]
    assert main(made_small(words, folder)) == 0, command


@pytest.mark.parametrize(("page", "heading"), [key for key, of in SECTIONS.items() if any(map(is_quick, of))])
def test_commands_that_need_no_model_do_what_they_say(page: str, heading: str, folder: Path) -> None:
    for command in filter(is_quick, SECTIONS[page, heading]):
        execute(command, folder)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("page", "heading"), [key for key, of in SECTIONS.items() if not all(map(is_quick, of))])
def test_commands_that_train_or_use_a_model_do_what_they_say(
    page: str, heading: str, folder: Path, trained: Path
) -> None:
    copied(trained, folder)
    for command in [command for command in COMMANDS if unit(command) == (page, heading)]:
        if command.text.startswith("trimline download"):
            downloaded(command.words, folder)
        elif command.words[0] == "tar":
            subprocess.run(command.words, check=True)
        elif command in SECTIONS[page, heading]:
            execute(command, folder)


@pytest.mark.parametrize("command", ELSEWHERE)
def test_what_is_run_elsewhere_is_run_there(command: str) -> None:
    assert runs(ELSEWHERE[command], command)


@pytest.mark.parametrize(
    ("command", "test"),
    [
        ("trimline scale", "tests/launch/test_scale.py"),  # full of the word
        ("trimline report COMPARISON", "tests/launch/test_compare.py"),
        ("trimline bench shard", "tests/launch/test_bench_launch.py"),
        ("trimline run configs/runs/nlvr.yaml", "tests/launch/test_demo.py"),
        ("trimline evaluate runs/captions --task nothing", "tests/launch/test_evaluate.py"),
    ],
)
def test_a_test_that_only_has_the_words_does_not_run_a_command(command: str, test: str) -> None:
    assert not runs(test, command)


def test_every_command_is_run_or_says_what_it_needs() -> None:
    """Nothing of ours is left out by accident: what is neither run nor marked is a program of others."""
    left: list[Any] = []
    for command in COMMANDS:
        run = command in SECTIONS.get(unit(command), ())
        elsewhere = any(command.text.startswith(known) for known in ELSEWHERE)
        if not run and not elsewhere and command.needs is None and "--help" not in command.words:
            left.append(command)
    assert {command.words[0] for command in left} <= _OTHERS
    # Pages are read as meant: these would be gone if the reader missed them.
    texts = json.dumps([str(command) for commands in SECTIONS.values() for command in commands])
    assert "trimline shard coco --root ~/coco" in texts and "trimline predict" in texts
