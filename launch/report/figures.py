"""How every figure looks, and how it becomes SVG for the page and files with its numbers."""

import csv
import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from data_prep.errors import UserError
from data_prep.files import write_atomic
from launch.report.caption import captioned, uncaptioned

# Okabe and Ito's colours, without black and yellow: each can be told from the others by colour-blind readers
# and from both a white and a dark page.
OKABE_ITO = {
    "blue": "#0072b2",
    "vermillion": "#d55e00",
    "green": "#009e73",
    "purple": "#cc79a7",
    "orange": "#e69f00",
    "sky": "#56b4e9",
}
# One more than there are colours: stacked parts stay apart in grey, and none repeats another's colour and hatch.
HATCHES = ("", "//", "..", "++", "xx", "\\\\", "oo")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# Text and axes: drawn in a colour that occurs nowhere else, which becomes the page's own ink.
INK = "#1a2b3c"
_INK_IN_FILES = "#222222"
_SVG = "{http://www.w3.org/2000/svg}"
_FOREIGN = ("script", "foreignObject", "image", "a", "iframe")

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": False,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure with its numbers."""

    name: str
    """File name without ending, also its place in the page."""
    title: str
    note: str
    svg: str
    """For the page: without a prologue, in the page's own ink."""
    csv: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def save(self, folder: Path) -> None:
        """Writes NAME.svg, with title and note inside of it, and NAME.csv."""
        folder.mkdir(parents=True, exist_ok=True)
        svg = captioned(self.svg.replace("currentColor", _INK_IN_FILES), self.title, self.note, _INK_IN_FILES)
        write_atomic(folder / f"{self.name}.svg", svg)
        write_atomic(folder / f"{self.name}.csv", self.csv)

    def renamed(self, name: str, title: str) -> "Drawing":
        """The same figure beside others of a page that may be drawn by the same words: no id inside of it is theirs."""
        svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", self.svg)
        svg = svg.replace(f'aria-label="{_escaped(self.title)}"', f'aria-label="{_escaped(title)}"', 1)
        return replace(self, name=name, title=title, svg=svg)

    @classmethod
    def load(cls, path: Path) -> "Drawing":
        """What `save` has written.

        Args:
            path: NAME.svg, with NAME.csv beside it.

        Raises:
            UserError: The files were not written by `save`, or hold what a report may not: scripts, outside addresses.
        """
        try:
            svg, numbers = (path.with_suffix(end).read_text(encoding="utf-8") for end in (".svg", ".csv"))
            root = ElementTree.fromstring(svg)
        except (OSError, ValueError, ElementTree.ParseError) as error:
            raise UserError(f"{path} cannot be shown: {error}") from error
        note = root.find(f"{_SVG}desc")
        if note is None or not root.get("aria-label") or not all(_is_plain(part) for part in root.iter()):
            raise UserError(f"{path} cannot be shown: it is no figure of trimline's own")
        columns, *rows = csv.reader(io.StringIO(numbers))
        return cls(
            name=path.stem,
            title=str(root.get("aria-label")),
            note=note.text or "",
            svg=uncaptioned(svg).replace(_INK_IN_FILES, "currentColor"),
            csv=numbers,
            columns=tuple(columns),
            rows=tuple(map(tuple, rows)),
        )


def draw(
    name: str,
    title: str,
    note: str,
    size: tuple[float, float],
    paint: Callable[[Figure], None],
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
) -> Drawing:
    """Paints a figure and puts its numbers beside it.

    Args:
        name: file name without ending; the ids inside the SVG derive from it, so it must be unique in a page.
        title: what the figure shows, also read to those who cannot see it.
        note: a sentence below it.
        size: width and height in inches.
        paint: adds the axes to the figure.
        columns: names of the columns of the numbers.
        rows: the numbers that are drawn; None and NaN become empty cells.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own matplotlibrc has no place in the report
        matplotlib.rcParams.update({**_STYLE, "svg.hashsalt": name})
        figure = Figure(figsize=size)
        FigureCanvasSVG(figure)
        paint(figure)
        svg = _svg(figure, title, note)
    cells = tuple(tuple(_cell(value) for value in row) for row in rows)
    return Drawing(
        name=name,
        title=title,
        note=note,
        svg=svg,
        csv=_csv(columns, cells),
        columns=tuple(columns),
        rows=cells,
    )


def count_layers(axes: Axes) -> None:
    """Ticks of whole layers along x, also where there is a single one."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))


def _is_plain(part: ElementTree.Element) -> bool:
    """Whether an element of a figure only draws: no script, and no address but those inside the figure."""
    values = {name.rpartition("}")[2].lower(): value for name, value in part.items()}
    inside = all(value.startswith("#") for name, value in values.items() if name in ("href", "src"))
    return part.tag.rpartition("}")[2] not in _FOREIGN and inside and not any(name.startswith("on") for name in values)


def _svg(figure: Figure, title: str, note: str) -> str:
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the same in every figure, and nothing refers to them
    text = text.replace("<svg ", f'<svg role="img" aria-label="{_escaped(title)}" ', 1)
    begin = text.index(">", text.index("<svg")) + 1
    return f"{text[:begin]}<desc>{_escaped(note)}</desc>{text[begin:]}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def save_rows(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a table as NAME.csv: a column for each name that any row has, lists in one cell; nothing without rows."""
    if not rows:
        return
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[_listed(row.get(column)) for column in columns] for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{name}.csv", _csv(columns, cells))


def _listed(value: Any) -> Any:
    return " ".join(str(_cell(each)) for each in value) if isinstance(value, list | tuple) else _cell(value)


def _csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    if value is None or value != value:
        return ""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value
