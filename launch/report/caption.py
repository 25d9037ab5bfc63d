"""Title and note of a figure as text inside its file: the page says them beside it, a file alone would not."""

import re
import textwrap
from html import escape, unescape

_VIEW = re.compile(r'height="([\d.]+)pt" viewBox="0 0 ([\d.]+) ([\d.]+)"')
_CAPTION = re.compile(r'<g class="caption" data-view="([^"]*)"[^>]*>.*?</g>', re.S)
_SIZES = {"bold": 10.0, "normal": 8.5}
_LETTER = {"bold": 0.66, "normal": 0.56}
"""Width of a letter in a wide font, as a share of its size."""
_SPACE, _EDGE = 1.4, 6.0


def captioned(svg: str, title: str, note: str, colour: str) -> str:
    """A figure with its title above and its note below.

    Args:
        svg: As matplotlib writes it.
        title: Without markup.
        note: Likewise; may be empty.
        colour: Of the text.
    """
    view = _VIEW.search(svg)
    assert view is not None, "matplotlib says how large an SVG is"
    width, height = float(view[2]), float(view[3])
    above, head = _text(title, width, "bold")
    below, foot = _text(note, width, "normal")
    whole = height + head + foot
    texts = _placed(above, -head, "bold") + _placed(below, height, "normal")
    group = f'<g class="caption" data-view="{escape(view[0])}" fill="{colour}">{texts}</g>'
    svg = svg.replace(view[0], f'height="{whole:g}pt" viewBox="0 {-head:g} {width:g} {whole:g}"', 1)
    before, end, after = svg.rpartition("</svg>")
    return f"{before}{group}{end}{after}"


def uncaptioned(svg: str) -> str:
    """What `captioned` was given; a figure without a caption as it is."""
    caption = _CAPTION.search(svg)
    if caption is None:
        return svg
    size = re.compile(r'height="[\d.]+pt" viewBox="[^"]*"')
    return size.sub(lambda _: unescape(caption[1]), svg.replace(caption[0], ""), count=1)


def _text(text: str, width: float, weight: str) -> tuple[list[str], float]:
    """The lines of a text and how high they are together."""
    size = _SIZES[weight]
    lines = textwrap.wrap(text, max(1, int((width - 2 * _EDGE) / (_LETTER[weight] * size))))
    return lines, (len(lines) * _SPACE * size + _EDGE if lines else 0.0)


def _placed(lines: list[str], top: float, weight: str) -> str:
    size = _SIZES[weight]
    style = f"font: {weight} {size:g}px 'DejaVu Sans', sans-serif"
    return "".join(
        f'<text x="{_EDGE:g}" y="{top + (at + 1) * _SPACE * size:.1f}" style="{style}">{escape(line)}</text>'
        for at, line in enumerate(lines)
    )
