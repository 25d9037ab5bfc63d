"""Reads the documentation: its pages, their commands, and what a command is marked as needing.

A command is a line of a code block (indented, or fenced as bash) that begins with a program. `# needs a cluster` behind
it, or on a line of its own above it in the block, says what it cannot run without; readers see it as well.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_DIARY = "docs/experiments.md"  # each entry is of the commit that it names
PAGES = tuple(
    path
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *ROOT.glob("examples/*.md")]
    if path.is_file() and path.relative_to(ROOT).as_posix() != _DIARY
)
NEEDS = ("a cluster", "GPUs", "the internet")
PROGRAMS = frozenset(
    {"trimline", "make", "python", "pytest", "pip", "source", "git", "cd", "ssh", "ray", "kubectl", "sbatch", "tar"}
)
_NEEDS = re.compile(rf"needs ({'|'.join(NEEDS)})\b")
_FENCE = re.compile(r"^ {0,3}```(\w*)")
_SHELLS = ("bash", "sh", "")


@dataclass(frozen=True)
class Command:
    """A command of a page.

    Attributes:
        page: From the root of the repository.
        line: Where it begins, from 1.
        heading: Of its section.
        text: As it stands there, on one line, without its comment.
        needs: What it is marked as needing; None where a test must run it.
    """

    page: str
    line: int
    heading: str
    text: str
    needs: str | None

    @property
    def words(self) -> list[str]:
        """As a shell would pass them on."""
        return shlex.split(self.text)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def commands_of(path: Path) -> list[Command]:
    """All commands in the code blocks of a page."""
    page = path.relative_to(ROOT).as_posix()
    return [command for heading, block in _blocks(path.read_text("utf-8")) for command in _read(page, heading, block)]


def inline_code(path: Path) -> list[str]:
    """What stands between single backticks, outside code blocks."""
    text, inside = "", False
    for line in path.read_text("utf-8").splitlines():
        if _FENCE.match(line):
            inside = not inside
        elif not inside and not line.startswith("    "):
            text += line + "\n"
    return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", text)]


def fenced(path: Path, language: str) -> list[str]:
    """Contents of the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def links_of(path: Path) -> list[tuple[Path, str]]:
    """Links into the repository: the file, and the anchor in it, empty for its beginning."""
    found = re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8"))
    parts = [link.partition("#") for link in found if "://" not in link]
    return [(path.parent / file if file else path, anchor) for file, _, anchor in parts]


def anchors_of(path: Path) -> set[str]:
    """What a link into a page may have behind `#`: its headings, as GitHub and GitLab make addresses of them."""
    found: dict[str, int] = {}
    inside = False
    for line in path.read_text("utf-8").splitlines():
        inside ^= bool(_FENCE.match(line))
        heading = re.match(r"#{1,6} (.*)", line)
        if heading and not inside:
            text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading[1]).strip().lower().replace(" ", "-")
            anchor = "".join(letter for letter in text if letter.isalnum() or letter in "-_")
            found[anchor] = found.get(anchor, 0) + 1
    return {anchor if at == 0 else f"{anchor}-{at}" for anchor, count in found.items() for at in range(count)}


def commits_of(path: Path) -> list[str]:
    """Commits that a page names by seven digits; one without a letter looks like a number, and is not among them."""
    found = re.findall(r"(?<![\w./-])[0-9a-f]{7}(?![\w-])", path.read_text("utf-8"))
    return [commit for commit in found if not commit.isdigit() and not commit.isalpha()]


Block = list[tuple[int, str]]


def _blocks(text: str) -> Iterator[tuple[str, Block]]:
    """Code blocks that a shell could read, with the heading that they stand under."""
    heading, block, fence, before = "", [], None, ""
    for number, line in enumerate([*text.splitlines(), ""], 1):
        mark = _FENCE.match(line)
        if mark and fence is None:
            fence = mark[1]
        elif mark:
            if fence in _SHELLS:
                yield heading, block
            block, fence = [], None
        elif fence is not None:
            block.append((number, line))
        elif line.startswith("    ") and (block or not before.strip()):
            block.append((number, line[4:]))
        else:
            if block:
                yield heading, block
            block = []
            if line.startswith("#"):
                heading = line.lstrip("# ")
        before = line


def _read(page: str, heading: str, block: Block) -> Iterator[Command]:
    above: str | None = None
    joined = ""
    begin = 0
    for number, line in block:
        begin = begin if joined else number
        joined += line.strip().removesuffix("\\")
        if line.rstrip().endswith("\\"):
            continue
        command, comment = _without_comment(joined)
        joined = ""
        needs = _NEEDS.search(comment)
        if not command:
            above = needs[1] if needs else above
        elif command.split()[0] in PROGRAMS:
            yield Command(page, begin, heading, command, needs[1] if needs else above)


def _without_comment(line: str) -> tuple[str, str]:
    command, mark, comment = f" {line}".partition(" #")
    return " ".join(command.split()).removesuffix(" &"), comment if mark else ""
