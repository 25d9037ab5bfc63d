"""Tars and tables as img2dataset lays them down, of two passes."""

import hashlib
import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.clean import CleanConfig, Cleaner
from data_prep.download.account import GOT, UNANSWERED
from data_prep.download.asked import Asked, write_asked
from data_prep.download.config import DownloadConfig
from data_prep.download.job import _finished, _write_shards
from data_prep.download.lists import find_list
from data_prep.download.results import Fetched, Outcomes, read_tables, write_places
from data_prep.errors import UserError
from data_prep.records import Record, Skipped
from data_prep.repair import repair_folder
from data_prep.tars import list_members
from data_prep.verify import verify_folder
from tests.data_prep.download.server import encoded
from tests.data_prep.samples import samples_in

HTML = b"<html>gone</html>"


def write_raw(raw: Path, shard: int, answers: dict[int, bytes | str]) -> None:
    """A shard with a row for each answer: bytes that came, or the error message."""
    raw.mkdir(parents=True, exist_ok=True)
    rows = []
    with tarfile.open(raw / f"{shard:05d}.tar", "w") as tar:
        for place, (row, answer) in enumerate(answers.items()):
            came = isinstance(answer, bytes)
            key = f"{shard:05d}{place:04d}"
            meta = {"row": row, "key": key, "status": "success" if came else "failed_to_download"}
            meta |= {"error_message": None if came else answer}
            meta |= {"sha256": hashlib.sha256(answer).hexdigest() if came else None}
            rows.append(meta)
            for extension, data in (("jpg", answer), ("json", json.dumps(meta).encode())) if came else ():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    pq.write_table(pa.Table.from_pylist(rows), raw / f"{shard:05d}.parquet")
    (raw / f"{shard:05d}_stats.json").write_text(json.dumps({"count": len(rows), "successes": 0}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "list.tsv").write_text("".join(f"caption {i}\thttp://a/{i}\n" for i in range(10)))
    write_asked(find_list(tmp_path / "list.tsv", "cc3m"), tmp_path / "asked", lambda _: None)
    first, again = tmp_path / "pass-0" / "raw", tmp_path / "pass-1" / "raw"
    # Out of order, as threads give them; row 9 is in no table.
    write_raw(first, 0, {2: encoded(2), 0: encoded(0), 1: "timed out", 3: encoded(0)})
    write_raw(first, 1, {5: HTML, 4: encoded(4, side=20), 6: HTML, 8: "HTTP Error 404: Not Found", 7: "timed out"})
    write_raw(again, 0, {7: "HTTP Error 410: Gone", 1: encoded(4, kind="PNG")})
    return tmp_path


def raws(folder: Path) -> list[Path]:
    return [folder / f"pass-{number}" / "raw" for number in (0, 1)]


def fetched(folder: Path) -> Fetched:
    outcomes_of(folder)
    return Fetched(folder, raws(folder), source="test", cleaner=Cleaner.of(CleanConfig(min_side=32)))


def outcomes_of(folder: Path) -> Outcomes:
    outcomes = Outcomes(10)
    for raw in raws(folder):
        read_tables(raw, outcomes)
    write_places(folder, raws(folder), outcomes.where({word: word == GOT for word in outcomes.words}))
    return outcomes


def test_the_latest_pass_says_what_became_of_a_picture(folder):
    outcomes = Outcomes(10)
    read_tables(raws(folder)[0], outcomes)
    assert outcomes.counts() == {UNANSWERED: 1, GOT: 6, "timeout: no answer": 2, "gone: HTTP 404": 1}
    assert outcomes.where({word: word.startswith("timeout") for word in outcomes.words}).tolist() == [1, 7]
    read_tables(raws(folder)[1], outcomes)
    assert outcomes.counts() == {UNANSWERED: 1, GOT: 7, "gone: HTTP 404": 1, "gone: HTTP 410": 1}


def test_pictures_come_in_the_lists_order_with_their_own_bytes(folder):
    split = fetched(folder)
    assert len(split) == 7
    got = list(split.records(0, 7))
    html = "not a JPEG, PNG or WebP picture"
    skipped = [(int(s.key), s.reason) for s in got if isinstance(s, Skipped)]
    # Twice the same page is twice no picture, not a duplicate.
    assert skipped == [(3, "duplicate: same picture from another URL"), (6, html)]
    records = {int(r.key): r for r in got if isinstance(r, Record)}
    assert {row: record.images[""] for row, record in records.items()} == {
        0: encoded(0), 1: encoded(4, kind="PNG"), 2: encoded(2), 4: encoded(4, side=20), 5: HTML,
    }  # fmt: skip
    assert records[2].captions == ("caption 2",)
    assert (records[2].source, records[2].id, records[2].fields) == ("test", "2", {"url": "http://a/2"})


def test_any_range_in_any_process_gives_the_same(folder):
    split = fetched(folder)
    whole = list(split.records(0, 7))
    copy = pickle.loads(pickle.dumps(split))
    assert len(pickle.dumps(split)) < 2000
    assert [record for start in range(7) for record in copy.records(start, start + 1)] == whole


def test_the_writers_rules_hold_and_their_reasons_are_in_the_account(folder):
    write_raw(raws(folder)[1], 1, {9: encoded(4, side=20)})  # small a second time: too small too, no duplicate
    outcomes = outcomes_of(folder)
    config = DownloadConfig(list=str(folder / "list.tsv"), out=str(folder), max_side=40, processes=1)
    spec = find_list(folder / "list.tsv", "cc3m")
    account = _write_shards(config, spec, {}, folder, raws(folder), Asked(folder / "asked"), outcomes, lambda *_: None)
    assert account["reasons"] == {
        "gone: HTTP 404": 1, "gone: HTTP 410": 1, "not_an_image: not a JPEG, PNG or WebP picture": 2, "too_small": 2,
        "duplicate: same picture from another URL": 1,
    }  # fmt: skip
    written = samples_in(folder / "shards")
    assert [(key, told["json"]["width"], told["json"]["height"]) for key, told in written.items()] == [
        ("000000000", 30, 40), ("000000001", 30, 40), ("000000002", 30, 40),
    ]  # fmt: skip
    # A PNG stays one, and what it was is told.
    assert "png" in written["000000001"]
    original = written["000000001"]["json"]["originals"]["image"]
    assert original["sha256"] == hashlib.sha256(encoded(4, kind="PNG")).hexdigest()
    assert verify_folder(folder / "shards") == []


def test_the_table_is_read_anew_when_it_changed_in_the_same_process(folder):
    assert len(fetched(folder)) == 7
    write_raw(folder / "pass-1" / "raw", 1, {9: encoded(9)})
    assert len(fetched(folder)) == 8


def test_a_tar_that_broke_is_named_and_fetched_again(folder):
    tar = folder / "pass-0" / "raw" / "00001.tar"
    tar.write_bytes(tar.read_bytes()[:700])
    with pytest.raises(UserError, match=r"00001.tar is broken .* fetched anew"):
        fetched(folder)
    assert not tar.with_name("00001_stats.json").exists()
    assert tar.with_name("00000_stats.json").exists()


def test_a_table_that_does_not_fit_its_tar_is_an_error(folder):
    with pytest.raises(RuntimeError, match="do not hold the 8 pictures"):
        write_places(folder, raws(folder), np.arange(8))


def test_a_shard_that_was_fetched_anew_may_bring_what_a_later_pass_brought_too(folder):
    write_raw(folder / "pass-0" / "raw", 1, {row: encoded(row) for row in (4, 5, 6, 7, 8)})
    write_raw(folder / "pass-0" / "raw", 0, {row: encoded(row) for row in (0, 1, 2, 3)})
    got = [record for record in fetched(folder).records(0, 9) if isinstance(record, Record)]
    assert [int(record.key) for record in got] == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert got[1].images[""] == encoded(4, kind="PNG")
    assert got[7].images[""] == encoded(7)


def test_a_tar_that_a_power_cut_filled_with_zeros_is_fetched_again(folder):
    tar = folder / "pass-0" / "raw" / "00001.tar"
    tar.write_bytes(tar.read_bytes()[:512] + bytes(tar.stat().st_size - 512))
    with pytest.raises(UserError, match=r"00001.tar is broken .* fetched anew"):
        fetched(folder)
    tar.write_bytes(bytes(tar.stat().st_size))
    with pytest.raises(UserError, match=r"lacks 3 of 3 pictures.* fetched anew"):
        fetched(folder)
    assert not tar.with_name("00001_stats.json").exists()


def test_a_download_that_was_mended_since_does_not_say_that_it_has_everything(folder):
    outcomes = outcomes_of(folder)
    config = DownloadConfig(list=str(folder / "list.tsv"), out=str(folder), processes=1)
    spec, final = find_list(folder / "list.tsv", "cc3m"), folder / "shards"
    account = _write_shards(config, spec, {}, folder, raws(folder), Asked(folder / "asked"), outcomes, lambda *_: None)
    assert _finished(final, {}) == account
    os.truncate(final / "00000.tar", list_members(final / "00000.tar")[-1].begin)
    repair_folder(final)
    with pytest.raises(UserError, match="has 2 of the 3 samples that were downloaded"):
        _finished(final, {})
    (final / "index.json").unlink()
    with pytest.raises(UserError, match="was damaged"):
        _finished(final, {})
