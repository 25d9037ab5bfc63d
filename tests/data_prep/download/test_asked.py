from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.download import asked as module
from data_prep.download.asked import Asked, Wish, _group, write_asked
from data_prep.download.lists import find_list


def make(folder: Path, lines: list[str]) -> Asked:
    (folder / "list.tsv").write_text("".join(f"{line}\n" for line in lines))
    seen: list[int] = []
    write_asked(find_list(folder / "list.tsv", "cc3m"), folder / "asked", seen.append)
    return Asked(folder / "asked")


def test_lines_with_one_url_become_one_picture_with_all_their_captions(tmp_path):
    asked = make(tmp_path, ["one\thttp://a/1", "bad", "two\thttp://a/2", "uno\thttp://a/1", "one\thttp://a/1"])
    assert len(asked) == 2
    assert asked.wish(0) == Wish(line=0, url="http://a/1", captions=("one", "uno"))
    assert asked.wish(1) == Wish(line=2, url="http://a/2", captions=("two",))
    assert (asked.lines, asked.repeats, asked.faults) == (5, 2, {"no URL": 1})


def test_pictures_are_found_at_any_place_over_many_batches(tmp_path):
    count = 2 * module.BATCH_ROWS + 17
    asked = make(tmp_path, [f"c{i}\thttp://a/{i % (count - 5)}" for i in range(count)])
    assert len(asked) == count - 5
    for number in (count - 6, 0, module.BATCH_ROWS, module.BATCH_ROWS - 1, 4):
        wish = asked.wish(number)
        assert (wish.line, wish.url) == (number, f"http://a/{number}")
        assert wish.captions == ((f"c{number}", f"c{number + count - 5}") if number < 5 else (f"c{number}",))
    wanted = np.array([3, module.BATCH_ROWS + 1, count - 6])
    assert [url for some in asked.urls(wanted) for url in some] == [f"http://a/{number}" for number in wanted]


def test_a_list_without_a_good_line_is_empty(tmp_path):
    asked = make(tmp_path, ["bad", "c\tfile:///x"])
    assert len(asked) == 0
    assert (asked.lines, asked.repeats) == (2, 0)


def test_a_stop_while_the_list_is_read_leaves_nothing(tmp_path, monkeypatch):
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    (tmp_path / "list.tsv").write_text("c\thttp://a/1\n")
    with pytest.raises(KeyboardInterrupt):
        write_asked(find_list(tmp_path / "list.tsv", "cc3m"), tmp_path / "asked", stop)
    assert [path.name for path in tmp_path.iterdir()] == ["list.tsv"]


@given(st.lists(st.lists(st.integers(0, 6), max_size=20), max_size=3))
def test_equal_ones_are_found_wherever_they_are(pieces):
    firsts, joins = _group([np.array(piece, dtype=np.uint64) for piece in pieces])
    wanted: dict[int, list[int]] = {}
    for row, value in enumerate(value for piece in pieces for value in piece):
        wanted.setdefault(value, []).append(row)
    assert firsts.tolist() == [rows[0] for rows in wanted.values()]
    assert joins.T.tolist() == [[rows[0], row] for rows in wanted.values() for row in rows[1:]]
