"""The shards of a download are read by the sources that look pictures up by URL; without network and img2dataset."""

from pathlib import Path

import pytest

from data_prep.clean import CleanConfig, Cleaner
from data_prep.download.account import GOT
from data_prep.download.asked import Asked, write_asked
from data_prep.download.lists import find_list
from data_prep.download.results import Fetched, Outcomes, read_tables, write_places
from data_prep.job import Layout
from data_prep.writer import write_split
from tests.data_prep.download.server import encoded
from tests.data_prep.download.test_results import write_raw
from tests.data_prep.published_files import shards, write
from tests.data_prep.test_published import LISTS

ROWS = [
    ("http://x.org/0.jpg", "zero"),
    ("http://x.org/1.jpg?a=b&c=d%20e#f", 'a "quoted" one'),
    ("http://x.org/gone.jpg", "gone"),
    ("http://x.org/\u00fc b.jpg", "\u00fc"),
    ("http://x.org/0.jpg", "zero again"),
    ("no url", "x"),
    ("http://x.org/copy.jpg", "the same picture as zero"),
]
ANSWERS = {0: encoded(0), 1: encoded(1, kind="PNG"), 2: "HTTP Error 404: Not Found", 3: encoded(3), 4: encoded(0)}
"""By the number of the URL among those that are asked for."""


def download(folder: Path, files: list[Path]) -> Path:
    """Does what `trimline download` does around img2dataset; gives the folder for `--images`."""
    state, out = folder / "state", folder / "out"
    write_asked(find_list(files[0]), state / "asked", lambda _: None)
    write_raw(state / "raw", 0, ANSWERS)
    outcomes = Outcomes(len(Asked(state / "asked")))
    read_tables(state / "raw", outcomes)
    write_places(state, [state / "raw"], outcomes.where({word: word == GOT for word in outcomes.words}))
    split = Fetched(state, [state / "raw"], source="mine", cleaner=Cleaner.of(CleanConfig(min_side=32)))
    write_split(split, out / "train", name="mine/train", fingerprint="f", layout=Layout(shard_samples=2), workers=1)
    return out


@pytest.mark.parametrize("form", LISTS)
def test_what_was_downloaded_meets_its_list(form, tmp_path):
    files = [Path(write(tmp_path / name, value)) for name, value in LISTS[form](ROWS).items()]
    got = str(download(tmp_path, files))
    source = form.partition("-")[0]
    account, found = shards(tmp_path / "list", source, annotations=tuple(map(str, files)), images=(got,))
    assert (account["asked"], account["written"]) == (7, 4)
    assert account["skipped"] == {"malformed record": 1, "picture missing": 2}
    told = {key: (value["url"], value["captions"], value["source"]) for key, value in found["train"].items()}
    assert told == {f"{source}-{row:08d}": (ROWS[row][0], [ROWS[row][1]], source) for row in (0, 1, 3, 4)}
    # Without the list: the pictures that came, each once, with everything that the list says of it.
    account, found = shards(tmp_path / "alone", source, images=(got,))
    assert (account["asked"], account["written"]) == (3, 3)
    told = {value["url"]: value["captions"] for value in found["train"].values()}
    assert told == {
        ROWS[0][0]: ["zero", "zero again"], ROWS[1][0]: [ROWS[1][1]], ROWS[3][0]: [ROWS[3][1]],
    }  # fmt: skip
