import re
from pathlib import Path
from xml.etree import ElementTree

from matplotlib.figure import Figure

from launch.report.caption import uncaptioned
from launch.report.figures import Drawing, draw

NOTE = "Bands are <95%> intervals & more; " * 12


def drawn() -> Drawing:
    def paint(figure: Figure) -> None:
        figure.add_subplot().plot([0, 1])

    return draw("a", "where <it> goes", NOTE, (4.0, 2.0), paint, ("x",), [["1"]])


def test_a_file_of_its_own_says_title_and_note_and_the_page_does_not_say_them_twice(tmp_path: Path) -> None:
    drawing = drawn()
    drawing.save(tmp_path)
    saved = (tmp_path / "a.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(saved)
    texts = [text for text in root.iter("{http://www.w3.org/2000/svg}text") if "font:" in text.get("style", "")]
    words = " ".join(text.text or "" for text in texts if text.get("x") == "6")
    assert words.split()[-len(NOTE.split()) :] == NOTE.split() and "where <it> goes" in words
    assert ">where" not in drawing.svg
    assert Drawing.load(tmp_path / "a.svg") == drawing


def test_a_caption_lies_inside_the_file_and_beside_the_figure(tmp_path: Path) -> None:
    drawn().save(tmp_path)
    saved = (tmp_path / "a.svg").read_text(encoding="utf-8")
    _, top, width, height = map(float, re.findall(r'<svg[^>]* viewBox="([^"]*)"', saved)[0].split())
    group = saved[saved.index('<g class="caption"') :]
    baselines = [float(y) for y in re.findall(r'<text x="6" y="([-0-9.]+)"', group)]
    assert width == 288 and len(baselines) > 3
    assert all(top < y < 0 or 144 < y < top + height for y in baselines)
    assert re.findall(r">([^<]*)</text>", group)[1] and max(map(len, re.findall(r">([^<]*)</text>", group))) < 90


def test_a_figure_of_an_older_version_has_no_caption_to_take_off() -> None:
    svg = drawn().svg
    assert uncaptioned(svg) == svg
