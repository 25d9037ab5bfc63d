"""What the documentation names is there: files, commands, options, keys."""

import ast
import importlib
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.cli import _TAKING_OVERRIDES, _split, command_parser, main
from launch.cli_evaluate import of_export
from launch.reading import known_keys, read_config
from launch.recipes import find_recipe
from launch.reference import CONFIGURATIONS
from tests.docs.pages import PAGES, ROOT, Command, anchors_of, commands_of, commits_of, fenced, inline_code, links_of
from tests.docs.sandbox import filled_in

COMMANDS = [command for page in PAGES for command in commands_of(page)]
OURS = [command for command in COMMANDS if command.words[0] == "trimline"]
_PATHS = re.compile(r"(?:tests|configs|docs|pipeline|launch|data_prep)/[\w./-]+\.(?:py|ya?ml|md|sbatch)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere_and_named_files_are_there(page: Path) -> None:
    assert [str(file) for file, _ in links_of(page) if not file.exists()] == []
    assert [f"{file}#{to}" for file, to in links_of(page) if to and to not in anchors_of(file)] == []
    named = [name for name in _PATHS.findall(page.read_text("utf-8")) if not re.search("[A-Z]{3}", name)]
    assert [name for name in named if not (ROOT / name).exists() and not (page.parent / name).exists()] == []


def test_anchors_are_those_of_headings(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `b.c`: d_e\n\n```bash\n# no heading\n```\n\n## [Twice](x.md)\n\n## Twice\n\n[to](#twice-1)\n")
    assert anchors_of(page) == {"a-bc-d_e", "twice", "twice-1"}
    assert links_of(page) == [(tmp_path / "x.md", ""), (page, "twice-1")]


def _history() -> list[str]:
    """All commits up to this one; skips where they are not here."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    git = ["git", "-C", str(ROOT)]
    shallow = subprocess.run([*git, "rev-parse", "--is-shallow-repository"], capture_output=True, text=True)
    if shallow.returncode or shallow.stdout.strip() != "false":
        pytest.skip("this is no clone of the repository, or a shallow one, which lacks the history")
    return subprocess.run([*git, "rev-list", "HEAD"], capture_output=True, text=True, check=True).stdout.split()


def test_the_commits_that_the_documents_name_are_there() -> None:
    """Of the diary too: a number is worth what the commit is that it was measured at."""
    history = {commit[:7] for commit in _history()}
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    named = [(page.relative_to(ROOT).as_posix(), commit) for page in pages for commit in commits_of(page)]
    assert len(named) > 100  # they are found at all
    assert sorted({(commit, page) for page, commit in named if commit not in history}) == []


@pytest.mark.parametrize("command", OURS, ids=str)
def test_a_command_is_one_that_trimline_takes(command: Command) -> None:
    own, overrides = _split(filled_in(command.words[1:]))
    if "--help" in own:
        return
    options = command_parser().parse_args(own)
    configs = [*getattr(options, "configs", ()), *getattr(options, "config", ())]
    if own[0] == "shard":
        overrides = ["--name", options.source, *overrides]
    if (configs or own[0] == "shard") and not of_export(own):
        (kind,) = [kind for names, kind in CONFIGURATIONS.values() if own[0] in {name.split()[0] for name in names}]
        read_config(kind, [find_recipe(name) for name in configs], overrides)


@pytest.mark.parametrize("command", [one for one in COMMANDS if one.words[0] in ("make", "python", "pytest")], ids=str)
def test_other_programs_of_ours_are_there(command: Command) -> None:
    program, *words = command.words
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert [word for word in words if "=" not in word and word not in targets] == []
    if program == "python" and words[0] == "-m":
        module = ROOT / words[1].replace(".", "/")
        assert module.is_dir() or module.with_suffix(".py").is_file()
    elif program == "python":
        assert (ROOT / words[0]).is_file()


KEYS = {key for _, kind in CONFIGURATIONS.values() for key in known_keys(kind)}
NAMED = {key for key in KEYS if not any(other.startswith(f"{key}.") for other in KEYS)}
KEYS |= {"exclude", "max-side"}  # shorter words of `trimline shard`


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_in_the_text_are_known(page: Path) -> None:
    for code in inline_code(page):
        if code.startswith("trimline "):
            _check_options(code)
        elif re.match(r"--[a-z_]+\.[a-z_.]+\b", code) and not code.startswith("--key."):  # that stands for all
            assert _is_key(code.split()[0]), code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_has_known_keys_and_python_imports_what_is_there(page: Path) -> None:
    for block in fenced(page, "yaml"):
        assert [key for key in _dotted(yaml.safe_load(block)) if not _is_key(key)] == [], block
    for block in fenced(page, "python"):
        imports = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.ImportFrom)]
        for node in imports:
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, name.name) for name in node.names), block


def test_a_target_out_of_reach_is_refused_in_the_words_of_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "configs/runs/demo.yaml", "--out", str(tmp_path / "run"), "--trim.targets", "[1.0, 500.0x]"]
    assert main(words) == 2
    said = capsys.readouterr().err.strip().removeprefix("trimline: ")
    assert said in inline_code(ROOT / "docs/trimming.md")


def _dotted(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in content.items():
        yield prefix + name
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")


def _check_options(code: str) -> None:
    """The words of a command that may stand for several, such as ``trimline cluster status|logs ID``."""
    words = [word for word in code.split()[1:] if word != "..."]
    parsers = [command_parser()]
    while words and (choices := _choices(parsers[0])):
        if not re.fullmatch(r"[a-z_|]+", words[0]):
            return  # `trimline COMMAND`, `trimline --version`
        assert set(words[0].split("|")) <= set(choices), code
        parsers = [choices[name] for name in words.pop(0).split("|")]
    takes_keys = code.split()[1].split("|")[0] in _TAKING_OVERRIDES or "cluster submit" in code
    for word in [word.split("=")[0].rstrip(",.") for word in words if word.startswith("--")]:
        known = all(word in parser._option_string_actions for parser in parsers)
        assert known or (takes_keys and _is_key(word)), f"{word} in {code}"


def _is_key(word: str) -> bool:
    """Whether an option is a key, or below one that holds names (``--sizes.SPLIT``)."""
    key = word.removeprefix("--").split("=")[0]
    return key in KEYS or any(key.startswith(f"{known}.") for known in NAMED)


def _choices(parser: object) -> dict[str, object]:
    """Commands below a command."""
    return next((dict(a.choices) for a in parser._actions if hasattr(a, "add_parser")), {})  # type: ignore[attr-defined]
