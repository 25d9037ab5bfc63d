import json
import os

import pytest

from data_prep import stats
from data_prep.job import Layout
from data_prep.stats import Counts, count_folder, describe, distribution
from data_prep.writer import write_split
from launch.cli import main
from tests.data_prep.samples import Plain, picture
from tests.data_prep.test_verify import make_tar


def test_what_lies_in_shards_is_counted(tmp_path):
    write_split(
        Plain(size=20, sides=(8, 8, 8, 16)),
        tmp_path,
        name="p",
        fingerprint="f",
        layout=Layout(shard_samples=8),
        workers=1,
    )
    figures = describe(count_folder(tmp_path))
    assert (figures["samples"], figures["shards"], figures["captions"], figures["statements"]) == (20, 3, 40, 20)
    assert figures["sources"] == {"plain": 20}
    assert figures["formats"] == {"png": 20}
    assert figures["bytes"]["shards"] == sum(path.stat().st_size for path in tmp_path.glob("*.tar"))
    assert figures["width"]["mean"] == 10
    assert (figures["width"]["p50"], figures["width"]["p95"], figures["aspect"]["mean"]) == (8, 16, 1)
    assert figures["caption_words"] == {"mean": 2, "min": 2, **{f"p{p}": 2 for p in stats.PERCENTILES}, "max": 2}
    words = figures["vocabulary"]
    assert (words["running"], words["distinct"], words["once"], words["complete"]) == (80, 22, 0, True)
    assert words["coverage"]["1000"] == 1
    assert figures["unusable"] == {}


def test_sizes_come_from_headers_where_no_json_states_them(tmp_path):
    make_tar(tmp_path / "0.tar", {"a.jpg": picture(1, 24, ".jpg"), "a.txt": b"Don't, don't! 2 dogs", "b.png": b"none"})
    counts = count_folder(tmp_path)
    assert counts.widths == {24: 1}
    assert counts.vocabulary == {"don't": 2, "2": 1, "dogs": 1}
    assert counts.unusable == {"size cannot be read": 1}


def test_questions_are_counted_beside_the_pictures_that_they_are_asked_of(tmp_path, capsys):
    asked = json.dumps({"questions": [{"question": "how many?"}, {"question": "what?"}]}).encode()
    odd = json.dumps({"questions": "what?"}).encode()
    pictures = {f"{name}.jpg": picture(number, 24, ".jpg") for number, name in enumerate("abc")}
    make_tar(tmp_path / "0.tar", {"a.jpg": pictures["a.jpg"], "a.json": asked, "b.jpg": pictures["b.jpg"],
                                  "b.json": odd, "c.jpg": pictures["c.jpg"], "c.txt": b"no question"})  # fmt: skip
    figures = describe(count_folder(tmp_path))
    assert (figures["samples"], figures["questions"], figures["captions"]) == (3, 2, 1)
    assert main(["stats", str(tmp_path)]) == 0
    assert ["questions", "2"] in [line.split() for line in capsys.readouterr().out.splitlines()]


def test_damaged_shards_are_counted_as_far_as_they_can_be_read(tmp_path):
    write_split(Plain(size=20), tmp_path, name="p", fingerprint="f", layout=Layout(shard_samples=10), workers=1)
    os.truncate(tmp_path / "00001.tar", 9000)
    counts = count_folder(tmp_path, workers=2)
    assert 10 < counts.samples < 20
    assert counts.unusable["truncated tar"] == 1


def test_a_vocabulary_that_is_too_large_loses_its_rarest_words(monkeypatch):
    monkeypatch.setattr(stats, "_MOST_WORDS", 10)
    counts, more = Counts(), Counts()
    more.vocabulary.update({f"w{n}": 1 + n % 3 for n in range(30)})
    counts.add(more)
    assert counts.pruned
    assert set(counts.vocabulary.values()) == {3}
    assert not describe(counts)["vocabulary"]["complete"]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [({5: 1}, (5, 5, 5)), ({1: 50, 2: 50}, (1, 1, 2)), ({n: 1 for n in range(1, 101)}, (5, 50, 95))],
)
def test_percentiles_are_those_of_all_occurrences(values, wanted):
    spread = distribution(values)
    assert (spread["p5"], spread["p50"], spread["p95"]) == wanted
    assert distribution({}) is None


def test_the_command_prints_a_table_and_one_json_object(tmp_path, capsys):
    for split in ("train", "val"):
        write_split(
            Plain(size=5), tmp_path / split, name="p", fingerprint="f", layout=Layout(shard_samples=5), workers=1
        )
    assert main(["stats", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert table.splitlines()[0].split() == ["train", "val", "total"]
    assert "from plain" in table
    assert main(["stats", str(tmp_path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (set(data["splits"]), data["total"]["samples"]) == ({"train", "val"}, 10)
    assert main(["stats", str(tmp_path / "nowhere")]) == 2


def test_a_source_for_every_picture_takes_no_memory_and_all_are_counted(tmp_path):
    members = {}
    for number in range(2500):
        source = "often" if number % 5 == 0 else f"http://a.org/{number}/" + "x" * 200
        members[f"{number}.png"] = b"x"
        members[f"{number}.json"] = json.dumps({"source": source, "width": 8, "height": 8}).encode()
    make_tar(tmp_path / "0.tar", members)
    sources = describe(count_folder(tmp_path))["sources"]
    assert len(sources) <= 1001
    assert (sum(sources.values()), sources["often"]) == (2500, 500)
    assert max(map(len, sources)) <= 100
