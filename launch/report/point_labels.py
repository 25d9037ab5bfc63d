"""Places values beside the points of a panel so that none covers another point, a bar or another value."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from matplotlib.axes import Axes

_REACH = 5.5
"""From a marker's middle to its edge, with some room; in printer's points, as all lengths here."""

_BEADS = 100
"""Small boxes that stand for a piece of a line: one box around a slanted piece would cover what it does not."""


class Box(NamedTuple):
    """A rectangle."""

    left: float
    bottom: float
    right: float
    top: float

    def shared(self, other: "Box") -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return width * height if width > 0 and height > 0 else 0.0

    @property
    def area(self) -> float:
        """Of the whole."""
        return (self.right - self.left) * (self.top - self.bottom)


def label_points(
    axes: Axes,
    texts: Sequence[tuple[float, float, str]],
    bars: Sequence[tuple[float, float, float]] = (),
    others: Sequence[tuple[float, float]] = (),
    line: Sequence[tuple[float, float]] = (),
) -> None:
    """Writes a text beside each point; the figure is laid out before, for places depend on the panel's size.

    Args:
        axes: The panel, with its limits set.
        texts: (x, y, text) of each point.
        bars: (x, low, high) of intervals.
        others: Points without a text.
        line: Corners of a line that texts had better not lie on.
    """
    unit = axes.figure.dpi / 72

    def place(x: float, y: float) -> tuple[float, float]:
        at = axes.transData.transform((x, y))
        return float(at[0]) / unit, float(at[1]) / unit

    spots = [place(x, y) for x, y in [*((x, y) for x, y, _ in texts), *others]]
    taken = [Box(x - _REACH, y - _REACH, x + _REACH, y + _REACH) for x, y in spots]
    ends = [(place(x, low), place(x, high)) for x, low, high in bars]
    taken += [Box(low[0] - 3, low[1], low[0] + 3, high[1]) for low, high in ends]
    for (x0, y0), (x1, y1) in pairwise(place(x, y) for x, y in line):
        along = [at / _BEADS for at in range(_BEADS + 1)]
        beads = [(x0 + at * (x1 - x0), y0 + at * (y1 - y0)) for at in along]
        taken += [Box(x - 1, y - 1, x + 1, y + 1) for x, y in beads]
    panel = axes.get_window_extent()
    room = Box(*(float(side) / unit for side in (panel.x0, panel.y0, panel.x1, panel.y1)))
    for x, y, text in texts:
        # Constrained layout would make room for a value that stands out of the panel, and move the points.
        note = axes.annotate(text, (x, y), xytext=(0, 0), textcoords="offset points", va="bottom", in_layout=False)
        extent = note.get_window_extent()
        # A point more, for letters are not as wide and high in every size.
        offset, box = choose(place(x, y), (extent.width / unit + 1, extent.height / unit + 1), taken, room)
        note.set_position(offset)
        taken.append(box)


def choose(
    spot: tuple[float, float], size: tuple[float, float], taken: Sequence[Box], room: Box
) -> tuple[tuple[float, float], Box]:
    """The first of the places around a spot that covers least of what is taken, or of what lies out of the room.

    Args:
        spot: The point's middle.
        size: Width and height of the text.
        taken: What not to cover.
        room: Where texts may stand.

    Returns:
        How far the text's lower left corner is from the spot, and what it covers.
    """
    width, height = size
    right, left, up, down = _REACH, -_REACH - width, _REACH - 2, 2 - _REACH - height
    middle, beside = -width / 2, -height / 2
    places: list[tuple[float, float]] = [
        (right, down), (right, up), (left, down), (left, up), (right, beside), (left, beside), (middle, up + 3),
        (middle, down - 3),
    ]  # fmt: skip
    boxes = [Box(spot[0] + x, spot[1] + y, spot[0] + x + width, spot[1] + y + height) for x, y in places]

    def cost(box: Box) -> float:
        return sum(map(box.shared, taken)) + box.area - box.shared(room)

    best = min(range(len(boxes)), key=lambda at: (round(cost(boxes[at]), 3), at))
    return places[best], boxes[best]
