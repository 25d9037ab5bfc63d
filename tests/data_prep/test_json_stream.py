import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import json_stream
from data_prep.errors import UserError
from data_prep.json_stream import json_lines, stream_json, text_lines

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(value=st.dictionaries(st.text(), values, max_size=5) | st.lists(values, max_size=6), chunk=st.integers(1, 30))
def test_any_json_is_stepped_through_whatever_the_chunks(value, chunk, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(value, ensure_ascii=chunk % 2 == 0, indent=chunk % 3 or None), "utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_CHUNK", chunk)
        found = list(stream_json(path))
    if isinstance(value, list):
        assert found == [("", item) for item in value]
    else:
        wanted = [(k, i) for k, v in value.items() for i in (v if isinstance(v, list) else [v])]
        assert found == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "wanted an object or an array"),
        (b"3", "wanted an object or an array"),
        (b'{"images": [1, 2', "wanted , or ]"),
        (b'{"images": [1, 2]', "wanted , or }"),
        (b'{"images": [1 2]}', "wanted , or ]"),
        (b'{"images": [tru]}', "not whole JSON"),
        (b"{3: 4}", "wanted a name in quotes"),
        (b"[1]\n[2]", "wanted nothing more"),
        (b'["\xff"]', "not UTF-8"),
        (b"\x89PNG\r\n\x1a\n", "not UTF-8"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a":' * 100_000, "nested too deep"),
    ],
)
def test_what_is_no_json_is_named(text, message, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(UserError, match=message) as caught:
        list(stream_json(path))
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 400


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "long.json"
    with open(path, "w") as file:
        file.write('{"info": {}, "images": [')
        file.writelines(f'{{"id": {n}, "caption": "{"word " * 20}"}},\n' for n in range(60_000))
        file.write('{"id": -1}]}')
    assert path.stat().st_size > 7_000_000
    tracemalloc.start()
    assert sum(1 for _ in stream_json(path)) == 60_002
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 << 20  # the window of 1 MiB of text, copied and decoded


def test_a_value_without_an_end_stops_at_a_limit(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text('["' + "x" * 200_000)
    monkeypatch.setattr(json_stream, "_LONGEST", 1 << 16)
    monkeypatch.setattr(json_stream, "_CHUNK", 1 << 10)
    with pytest.raises(UserError, match="one value has more than"):
        list(stream_json(path))


def test_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n[1]\n{"b": NaN}\n\xff\n{"c"\n' + b"[" * 50_000 + b'\n{"d": 2}')
    found = list(json_lines(path))
    assert found == [(1, {"a": 1}), (3, None), (4, {"b": None}), (5, None), (6, None), (7, None), (8, {"d": 2})]
    path.write_bytes(b"a\0b")
    with pytest.raises(UserError, match="not a text file"):
        list(text_lines(path))


def test_an_endless_line_is_malformed_and_the_next_one_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "_LONGEST", 100)
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 350 + b"\nshort\n")
    assert list(text_lines(path)) == [(1, None), (2, "short")]
