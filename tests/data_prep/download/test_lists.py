import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.download.lists import Entry, _fault, find_list, read_list
from data_prep.errors import UserError

A, B = "http://a.org/1.jpg", "https://b.org/2.png"
WANTED = [Entry(url=A, captions=('a "dog" runs',)), Entry(url=B, captions=("two cats",))]
SBU = {"image_urls": [A, B], "user_ids": ["x", "y"], "captions": ['a "dog" runs', "two cats"]}


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def read(path: Path, kind: str = "auto", **columns: str) -> list[Entry]:
    return list(read_list(find_list(path, kind, **columns)))


CC3M = f'a "dog" runs\t{A}\ntwo cats\t{B}\n'
LISTS = {
    "Train_GCC-training.tsv": ("cc3m", CC3M),
    "with_header.tsv": ("tsv", f"caption\turl\n{CC3M}".replace('"', "'")),
    "cc12m.tsv": ("cc12m", f'{A}\ta "dog" runs\r\n{B}\ttwo cats'),
    "sbu-captions-all.json": ("sbu", json.dumps(SBU)),
    "cc3m_albef.json": ("albef", json.dumps([
        {"image": A, "caption": ['a "dog" runs']}, {"image": B, "caption": "two cats"},
    ])),
    "list.csv": ("csv", f'caption,url\n"a ""dog"" runs",{A}\n\ntwo cats,{B}\n'),
    "rows.jsonl": (
        "json", f'{{"url": "{A}", "caption": "a \\"dog\\" runs"}}\n\n{{"url": "{B}", "caption": "two cats"}}\n',
    ),
    "rows.json": ("json", json.dumps([{"url": A, "caption": 'a "dog" runs'}, {"url": B, "caption": "two cats"}])),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("zipped", [False, True])
def test_every_published_format_is_recognised_and_read(name, zipped, tmp_path):
    kind, text = LISTS[name]
    path = write(tmp_path / name, text)
    if zipped and not text.startswith(("[", '{"image_urls"')):
        path = write(tmp_path / f"{name}.gz", gzip.compress(path.read_bytes()))
    assert find_list(path).format == kind
    entries = read(path)
    assert [entry.url for entry in entries] == [A, B]
    assert [entry.captions for entry in entries] == [(entry.captions[0].replace("'", '"'),) for entry in WANTED] or (
        name == "with_header.tsv"
    )
    assert all(entry.fault is None for entry in entries)


def test_the_header_that_people_put_into_cc3m_is_no_record(tmp_path):
    path = write(tmp_path / "cc3m.tsv", f"url\tcaption\n{A}\tone\n")
    assert read(path, "cc3m") == [Entry(url=A, captions=("one",))]


def test_more_columns_as_in_cc3ms_labels_are_left_alone(tmp_path):
    path = write(tmp_path / "labels.tsv", f"one\t{A}\tdog,cat\t/m/1\t0.9\n")
    assert read(path) == [Entry(url=A, captions=("one",))]


def test_sbus_pair_of_texts_is_read_side_by_side(tmp_path):
    path = write(tmp_path / "SBU_captioned_photo_dataset_urls.txt", f"{A}\n{B}\n")
    with pytest.raises(UserError, match=r"SBU_captioned_photo_dataset_captions.txt is missing"):
        find_list(path)
    write(tmp_path / "SBU_captioned_photo_dataset_captions.txt", 'a "dog" runs\ntwo cats\n')
    assert read(path) == WANTED
    assert len(find_list(path).files) == 2
    with pytest.raises(UserError, match="give the file of the URLs"):
        find_list(tmp_path / "SBU_captioned_photo_dataset_captions.txt")


@pytest.mark.parametrize("kind", ["sbu-captions-all.json", "SBU_urls.txt"])
def test_unequal_numbers_of_urls_and_captions_are_refused(kind, tmp_path):
    write(tmp_path / "SBU_captions.txt", "one\n")
    path = write(tmp_path / kind, f"{A}\n{B}\n" if kind.endswith("txt") else json.dumps({**SBU, "captions": ["one"]}))
    with pytest.raises(UserError, match="not as many URLs as captions"):
        read(path)


def test_parquet_with_named_columns_and_lists_of_captions(tmp_path):
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"link": [A, None], "texts": [["one", " ", "two"], ["three"]]}), path)
    with pytest.raises(UserError, match=r"no column 'url' but link, texts; give it with --url-column"):
        find_list(path)
    entries = read(path, url="link", caption="texts")
    assert entries == [Entry(url=A, captions=("one", "two")), Entry(url="", captions=("three",), fault="no URL")]


def test_a_caption_is_not_broken_at_what_python_takes_for_an_end_of_line(tmp_path):
    odd = "a\u2028b\x0bc\rd"
    assert read(write(tmp_path / "cc3m.tsv", f"{odd}\t{A}\n")) == [Entry(url=A, captions=(odd,))]


def test_lines_that_cannot_be_used_are_given_with_their_fault(tmp_path):
    lines = [
        f"good\t{A}".encode(), b"no tab at all", b"\thttp://a.org/1.jpg", b"c\t", b"c\tfile:///etc/passwd",
        b"c\tftp://a/b", b"c\tdata:image/png;base64,AA", b"c\thttp://", b"c\thttp://[::1/x", b"\xff\xfe\t" + A.encode(),
        b"c\t/etc/passwd",
    ]  # fmt: skip
    faults = [entry.fault for entry in read(write(tmp_path / "cc3m.tsv", b"\n".join(lines)))]
    scheme = "not an http or https URL"
    assert faults == [
        None, "no URL", "no caption", "no URL", scheme, scheme, scheme, "malformed URL", "malformed URL",
        "not UTF-8", scheme,
    ]  # fmt: skip


def test_escapes_of_json_are_read_and_lone_surrogates_are_no_text(tmp_path):
    pair = json.dumps([{"image": A, "caption": "a \U0001f600 smile"}])
    assert "\\ud83d" in pair
    assert read(write(tmp_path / "l.json", pair))[0].captions == ("a \U0001f600 smile",)
    assert read(write(tmp_path / "l.jsonl", f'{{"url": "{A}", "caption": "\\ud800"}}'))[0].fault == "not UTF-8"


@pytest.mark.parametrize(
    ("name", "text", "kind", "said"),
    [
        ("l.dat", "x", "auto", "is not clear from its name; give --format"),
        ("l.json", "[{", "albef", "is not whole JSON"),
        ("l.json.gz", gzip.compress(b'[{"image": "http://a"}]'), "auto", "unpack it first with gunzip"),
        ("l.json.gz", "nonsense", "auto", "cannot be read as text"),
        ("l.json", "[" * 100_000, "albef", "nested too deep"),
        ("l.json", "[{}]", "albef", "no column 'image'"),
        ("l.json", "nonsense", "json", "cannot be read as json"),
        ("l.parquet", "nonsense", "auto", "cannot be read as parquet"),
        ("l.tsv.gz", "nonsense", "cc3m", "cannot be read as cc3m"),
        ("l.csv", "a,b\n1,2\n", "auto", "has no column 'url' but a, b"),
        ("l.csv", "", "auto", "is empty: its first line names no columns"),
        ("l.tsv", "", "cc3m", "holds no line"),
    ],
)
def test_what_is_no_list_is_refused_in_one_line(name, text, kind, said, tmp_path):
    with pytest.raises(UserError, match=said) as caught:
        find_list(write(tmp_path / name, text), kind)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_columns_of_a_format_without_any_are_refused(tmp_path):
    with pytest.raises(UserError, match="is no file"):
        find_list(tmp_path / "none.tsv")
    with pytest.raises(UserError, match="cc3m has none"):
        find_list(write(tmp_path / "c.tsv", CC3M), url="link")


@given(st.text(max_size=40), st.lists(st.text(max_size=10), max_size=3))
def test_no_url_makes_the_check_fail(url, captions):
    fault = _fault(url, captions)
    assert fault is None or isinstance(fault, str)


@given(st.binary(max_size=300), st.sampled_from(["tsv", "csv", "json", "jsonl", "parquet", "txt", "tsv.gz"]))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data, suffix):
    folder = tmp_path_factory.mktemp("fuzz")
    write(folder / "captions.txt", data)
    path = write(folder / ("urls.txt" if suffix == "txt" else f"list.{suffix}"), data)
    try:
        for entry in read(path):
            assert entry.fault is not None or entry.url.lower().startswith("http")
    except UserError as error:
        assert "\n" not in str(error)
