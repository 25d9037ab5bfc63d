import hashlib
import io
import json
import tarfile
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_prep import duplicates
from data_prep.captions import in_one_line, without_control, without_markup
from data_prep.clean import CleanConfig, Cleaner, Dropped
from data_prep.errors import UserError
from data_prep.exclusion import write_exclusions
from data_prep.images import BadImage
from data_prep.index import load_index
from data_prep.job import Layout
from data_prep.records import Record
from data_prep.verify import verify_folder
from data_prep.writer import write_split
from tests.data_prep.samples import Listed, contents, picture, samples_in


def record(captions=("a dog",), data=None, **changes) -> Record:
    options = {"key": "k", "source": "s", "id": "1", "images": {"": data or picture(1)}, "captions": captions}
    return Record(**(options | changes))


def cleaned(captions, **config) -> tuple[list[str], dict[str, int]]:
    changes = Counter()
    kept = Cleaner.of(CleanConfig(**config)).screen(
        record(captions, statements=({"text": "t", "label": True},)), changes
    )
    return list(kept.captions), dict(changes)


def write(folder, records, **options):
    clean = options.pop("clean", CleanConfig())
    layout = options.pop("layout", Layout(shard_samples=10))
    workers = options.pop("workers", 1)
    return write_split(
        Listed(tuple(records)), folder, name="x", fingerprint="f", layout=layout, clean=clean, workers=workers
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<b>A</b> dog", "A dog"),
        ("a &amp; b &lt;3", "a & b <3"),
        ("x<br/>y", "x y"),
        ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        ("<!-- no -->yes", "yes"),
        ("<3 this", "<3 this"),
        ("a <!-- b", "a <!-- b"),
        ("<!-->a<!-- <b> -->c<!--", "c<!--"),
        ("a &#0000100; &#100 &#" + "1" * 5000 + ";", "a d d \N{REPLACEMENT CHARACTER}"),
        ('<a href="x">link</a>', "link"),
    ],
)
def test_markup_goes_and_text_stays(text, expected):
    assert in_one_line(without_markup(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x00b", "ab"),
        ("a\u200bb\ufeff", "ab"),
        ("a\tb", "a b"),
        ("\ud800x", "x"),
        ("Köln 東京 🐕", "Köln 東京 🐕"),
        ("a\u202eb", "ab"),
        ("a\xadb", "ab"),
    ],
)
def test_control_characters_go_and_letters_stay(text, expected):
    assert in_one_line(without_control(text)) == expected


@given(st.text())
def test_cleaning_twice_changes_nothing_more(text):
    once = in_one_line(without_control(text))
    assert in_one_line(without_control(once)) == once


@pytest.mark.timeout(5)
def test_markup_that_never_ends_takes_no_time():
    text = "<!--" * 200_000
    assert without_markup(text) == text


def test_captions_are_left_as_they_are_unless_asked():
    assert cleaned(["<b>a\x00</b>", "", "x" * 999]) == (["<b>a\x00</b>", "", "x" * 999], {})


def test_captions_are_cleaned_and_counted_by_reason():
    captions = ["<b>a dog</b>", "a\x00 cat", "  ", "no", "x" * 50, "fine  as it is"]
    kept, changes = cleaned(captions, markup=True, control=True, min_caption=3, max_caption=40)
    assert kept == ["a dog", "a cat", "fine  as it is"]
    assert changes == {
        "markup removed": 1, "control characters removed": 1, "empty": 1, "too short": 1, "too long": 1,
    }  # fmt: skip


def test_a_sample_without_any_text_left_is_dropped_but_statements_and_questions_keep_it():
    cleaner = Cleaner.of(CleanConfig(min_caption=1))
    for captions in ((" ",), ()):
        with pytest.raises(Dropped, match="no caption"):
            cleaner.screen(record(captions), Counter())
    assert cleaner.screen(record((), statements=({"text": "x", "label": False},)), Counter()).captions == ()
    assert list(cleaner.screen(record((" ",), questions=({"question": "?", "answer": "!"},)), Counter()).captions) == []


@pytest.mark.parametrize(
    ("size", "config", "reason"),
    [
        ((20, 64), {"min_side": 21}, "too small"),
        ((20, 64), {"min_side": 20}, None),
        ((20, 61), {"max_aspect": 3}, "too stretched"),
        ((60, 20), {"max_aspect": 3}, None),
        ((100, 100), {"max_pixels": 9999}, "too large"),
        ((100, 100), {"max_pixels": 10000}, None),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_sizes(size, config, reason, kind):
    file = io.BytesIO()
    Image.new("RGB", size).save(file, kind)
    cleaner = Cleaner.of(CleanConfig(**config))
    if reason is None:
        assert cleaner.check(file.getvalue(), "00" * 32)[2:] == size
    else:
        with pytest.raises((Dropped, BadImage), match=reason):
            cleaner.check(file.getvalue(), "00" * 32)


def test_without_decoding_only_headers_are_read():
    data = picture(1, 64, ".jpg")
    cut = data[: len(data) // 2]
    with pytest.raises(BadImage, match="broken"):
        Cleaner.of(CleanConfig()).check(cut, "00" * 32)
    assert Cleaner.of(CleanConfig(decode=False)).check(cut, "00" * 32).width == 64


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"min_side": 0}, "min_side=0"),
        ({"max_aspect": 0.5}, "max_aspect=0.5"),
        ({"max_aspect": float("nan")}, "max_aspect"),
        ({"max_pixels": 10**10}, "max_pixels"),
        ({"min_caption": 9, "max_caption": 5}, "swap them"),
    ],
)
def test_limits_that_nothing_passes_are_the_users_error(changes, said):
    with pytest.raises(UserError, match=said):
        CleanConfig(**changes)


def test_pictures_are_excluded_by_checksum_id_and_another_sets_id(tmp_path):
    write(tmp_path / "test", [record(key="t", id="7", source="coco", data=picture(7))])
    lists = tmp_path / "list.txt"
    assert write_exclusions([tmp_path / "test"], lists) == {"samples": 1, "ids": 1, "checksums": 1}
    (tmp_path / "more.txt").write_text("# by hand\n\n55\n")
    records = [
        record(key="a", id="x", data=picture(7)),
        record(key="b", source="coco", id="7"),
        record(key="c", source="vg", id="7"),
        record(key="d", source="vg", id="9", fields={"coco_id": 7}),
        record(key="e", source="vg", id="55"),
        record(key="f", source="vg", id="12", images={"left": picture(3), "right": picture(7)}),
    ]
    config = CleanConfig(exclude=[str(lists), str(tmp_path / "more.txt")])
    account = write(tmp_path / "out", records, clean=config)
    assert account["skipped"] == {"excluded by checksum": 2, "excluded by id": 3}
    assert list(samples_in(tmp_path / "out")) == ["c"]


def test_a_flickr_picture_is_known_in_every_data_set_that_shows_it(tmp_path):
    write(tmp_path / "test", [record(key="t", id="9_x.jpg", source="flickr30k", fields={"flickr_id": "9"})])
    assert write_exclusions([tmp_path / "test"], tmp_path / "list.txt")["ids"] == 2
    records = [
        record(key="a", source="vg", id="1", data=picture(1), fields={"coco_id": None, "flickr_id": "9"}),
        record(key="b", source="vg", id="9", data=picture(2), fields={"coco_id": 9, "flickr_id": None}),
    ]
    write(tmp_path / "out", records, clean=CleanConfig(exclude=[str(tmp_path / "list.txt")]))
    assert list(samples_in(tmp_path / "out")) == ["b"]


@pytest.mark.parametrize(
    "text", ['{"originals": []}', '{"originals": {"a": {"sha256": 3}}}', "[" * 9999, '"x"', "\xff"]
)
def test_pictures_with_json_of_any_kind_are_listed_by_checksum(tmp_path, text):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("k.png", picture(1)), ("k.json", text.encode("latin-1"))):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    counts = write_exclusions([tmp_path], tmp_path / "list.txt")
    assert counts == {"samples": 1, "ids": 0, "checksums": 1}


def test_a_list_may_begin_with_the_mark_that_windows_puts_there(tmp_path):
    (tmp_path / "list.txt").write_text("s:1\n", encoding="utf-8-sig")
    with pytest.raises(Dropped, match="excluded by id"):
        Cleaner.of(CleanConfig(exclude=[str(tmp_path / "list.txt")])).screen(record(), Counter())


@pytest.mark.parametrize("text", [None, "", "# nothing\n"])
def test_a_list_that_names_nothing_is_the_users_error(tmp_path, text):
    if text is not None:
        (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=r"clean\.exclude"):
        Cleaner.of(CleanConfig(exclude=[str(tmp_path / "list.txt")]))


@pytest.mark.parametrize("order", [None, "seed"])
def test_the_first_of_equal_pictures_stays_whatever_the_order(tmp_path, order):
    # 40 samples over 11 pictures; sample 0 has no caption, so that its twin 11 is the first that counts.
    records = [record(key=f"k{n:02d}", id=str(n), data=picture(n % 11), captions=("x" * n,)) for n in range(40)]
    clean, layout = CleanConfig(duplicates=True, min_caption=1), Layout(shard_samples=7, order=order)
    account = write(tmp_path / "one", records, clean=clean, layout=layout)
    assert account["skipped"] == {"no caption": 1, "duplicate picture": 28}
    assert sorted(samples_in(tmp_path / "one")) == [f"k{n:02d}" for n in range(1, 12)]
    assert verify_folder(tmp_path / "one") == []
    write(tmp_path / "two", records, clean=clean, layout=layout, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_duplicates_are_compared_in_groups_where_memory_asks_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "_AT_ONCE", 4)
    monkeypatch.setattr(duplicates, "CHUNK", 6)
    records = [record(key=f"k{n:02d}", data=picture(n % 11)) for n in range(40)]
    write(tmp_path / "out", records, clean=CleanConfig(duplicates=True))
    assert sorted(samples_in(tmp_path / "out")) == [f"k{n:02d}" for n in range(11)]


def test_larger_pictures_are_made_smaller_and_the_json_says_so(tmp_path):
    big, small = picture(1, 64, ".jpg"), picture(2, 16, ".jpg")
    write(tmp_path, [record(key="a", data=big), record(key="b", data=small)], layout=Layout(max_side=32))
    samples = samples_in(tmp_path)
    a, b = samples["a"]["json"], samples["b"]["json"]
    assert samples["b"]["jpg"] == small
    assert "changed" not in b
    assert (a["width"], a["height"]) == (32, 32) == Image.open(io.BytesIO(samples["a"]["jpg"])).size
    assert a["sha256"] == hashlib.sha256(samples["a"]["jpg"]).hexdigest()
    assert a["originals"] == {"image": {"sha256": hashlib.sha256(big).hexdigest(), "width": 64, "height": 64}}
    assert "32 pixels" in a["changed"]
    assert verify_folder(tmp_path) == []


def test_a_picture_that_is_made_smaller_again_is_still_known_by_what_it_was_at_first(tmp_path):
    first = hashlib.sha256(picture(1, 64, ".jpg")).hexdigest()
    write(tmp_path / "32", [record(data=picture(1, 64, ".jpg"))], layout=Layout(max_side=32))
    (stored,) = samples_in(tmp_path / "32").values()
    fields = {name: stored["json"][name] for name in ("changed", "originals")}
    for side, words in ((16, "16 pixels"), (32, "32 pixels")):
        write(tmp_path / "again", [record(data=stored["jpg"], fields=fields)], layout=Layout(max_side=side))
        value = samples_in(tmp_path / "again")["k"]["json"]
        assert (value["width"], value["originals"]["image"]["sha256"]) == (side, first)
        assert words in value["changed"]
        (tmp_path / "again/index.json").unlink()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "CMYK", "I;16", "LA"])
def test_every_kind_of_picture_can_be_made_smaller(mode, tmp_path):
    file = io.BytesIO()
    Image.new(mode, (60, 20)).save(file, "JPEG" if mode == "CMYK" else "PNG")
    write(tmp_path, [record(data=file.getvalue())], layout=Layout(max_side=30))
    assert (samples_in(tmp_path)["k"]["json"]["width"], samples_in(tmp_path)["k"]["json"]["height"]) == (30, 10)


def test_half_a_character_does_not_stop_the_writer(tmp_path):
    write(tmp_path, [record(captions=("a \ud83d dog",))])
    assert verify_folder(tmp_path) == []
    with tarfile.open(tmp_path / "00000.tar") as tar:
        assert json.loads(tar.extractfile("k.json").read())["captions"] == ["a ? dog"]
    assert load_index(tmp_path)[0]["account"]["written"] == 1
