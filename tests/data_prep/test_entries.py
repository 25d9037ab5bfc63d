import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.entries import Entry, EntrySplit, key_of, write_entries
from data_prep.grouping import Groups
from data_prep.pictures import write_index
from data_prep.records import Record, Skipped
from data_prep.stores import find_stores
from tests.data_prep.stored import store


@pytest.fixture
def opened(tmp_path):
    """Makes a split of entries over a folder with one picture, p.jpg."""
    (found,) = find_stores([str(store(tmp_path / "d", "folder", {"p.jpg": b"P"}))], "--images")

    def make(*entries: Entry) -> list[Record | Skipped]:
        folder = tmp_path / "table"
        (folder / "pictures").mkdir(parents=True)
        write_index(folder / "pictures", [found], [(p.name, p) for p in found.places(0)], exact=False)
        write_entries(folder, entries, ["train"])
        split = pickle.loads(pickle.dumps(EntrySplit(folder, "train", source="s", match="name")))
        records = list(split.records(0, len(split)))
        assert [next(iter(split.records(n, n + 1))) for n in range(len(split))] == records
        return records

    return make


def entry(name: str, **more) -> Entry:
    return Entry(split="train", id=name, pictures={"": ["p.jpg"]}, captions=["c"], **more)


def test_keys_of_a_split_are_unique(opened):
    records = opened(entry("a", key="x"), entry("b", key="x"), entry("c"), entry("a", key="x"), entry("c"))
    keys = [record.key for record in records]
    assert len({*keys[:3]}) == 3
    assert keys[2] == "c"
    assert [isinstance(record, Skipped) and record.reason for record in records[3:]] == ["repeated record"] * 2


def test_names_whose_hashes_share_32_bits_have_keys_of_their_own(opened):
    names = ("図75170/image.jpg", "図93704/image.jpg")
    assert len({key_of(name) for name in names}) == 2
    records = opened(*(entry(name, key="image") for name in names))
    assert len({record.key for record in records}) == 2


def test_names_that_cannot_be_written_as_they_are_share_no_key(opened):
    records = opened(entry("\ud800", key="x"), entry("\ud801", key="x"))
    assert [isinstance(record, Skipped) and record.reason for record in records] == [False, "repeated record"]


@given(st.lists(st.text(min_size=1), unique=True, max_size=40))
def test_keys_are_safe_and_differ(names):
    keys = [key_of(name) for name in names]
    assert len(set(keys)) == len(names)
    for name, key in zip(names, keys, strict=True):
        Record(key=key, source="s", id=name, images={"": b""})


def test_what_json_cannot_say_is_replaced(opened):
    (record,) = opened(entry("a", fields={"far": float("inf"), "half": "\ud800x", "deep": {"n": [float("nan")]}}))
    assert record.fields == {"far": None, "half": "?x", "deep": {"n": [None]}}


def test_values_nested_too_deep_are_counted(opened):
    deep: list = []
    for _ in range(2000):
        deep = [deep]
    (record,) = opened(entry("a", fields={"deep": deep}))
    assert record.reason == "malformed record"


def test_entries_of_other_splits_are_left_out(opened):
    records = opened(entry("a"), Entry(split="other", id="b"))
    assert [record.id for record in records] == ["a"]


@given(pairs=st.lists(st.tuples(st.sampled_from("abcdef") | st.integers(-5, 5), st.integers())))
def test_groups_come_in_order_of_first_sight(pairs, tmp_path_factory):
    wanted: dict = {}
    for key, value in pairs:
        wanted.setdefault(key, []).append(value)
    with Groups(tmp_path_factory.getbasetemp()) as groups:
        for key, value in pairs:
            groups.add(key, value)
        assert list(groups) == list(wanted.values())
