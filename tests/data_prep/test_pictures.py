import io
import os
import pickle
import tarfile
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import stores
from data_prep.errors import UserError
from data_prep.pictures import Pictures, write_index
from data_prep.stores import NoPicture, Place, Store, StoreReader, find_stores
from tests.data_prep.stored import store

KINDS = ("folder", "tar", "zip", "deflated")
FILES = {"val2014/a.jpg": b"first", "val2014/b.jpg": b"second" * 99, "deep/er/c.png": b"", "top.jpg": b"top"}


def index(folder, found, *, exact=False) -> Pictures:
    folder.mkdir(parents=True)
    places = ((place.name, place) for number, one in enumerate(found) for place in one.places(number))
    write_index(folder, found, places, exact=exact)
    return Pictures(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_store_gives_the_same(kind, tmp_path):
    pictures = index(tmp_path / "index", find_stores([str(store(tmp_path / "data", kind, FILES))], "--images"))
    for again in (pictures, pickle.loads(pickle.dumps(pictures))):
        for name, data in FILES.items():
            assert again.read([name], "path") == data
            assert again.read([name.rpartition("/")[2]], "name") == data
            assert again.read([f"/export/{name}"], "name") == data
            assert again.read(["nowhere.jpg", name], "name") == data
    with pytest.raises(NoPicture, match="picture missing"):
        pictures.read(["d.jpg"], "path")


def test_archives_in_a_given_folder_are_stores_too(tmp_path):
    store(tmp_path / "all" / "loose", "folder", {"x.jpg": b"x"})
    store(tmp_path / "all" / "one", "tar", {"y.jpg": b"y"})
    store(tmp_path / "all" / "two", "zip", {"z.jpg": b"z"})
    pictures = index(tmp_path / "index", find_stores([str(tmp_path / "all")], "--images"))
    assert [pictures.read([f"{name}.jpg"], "name") for name in "xyz"] == [b"x", b"y", b"z"]


def test_folders_that_disagree_do_not_match_unless_the_name_decides(tmp_path):
    one, two = (
        store(tmp_path / name, "folder", {"1.jpg": name.encode(), f"{name}-only.jpg": b"o"}) for name in ("a", "b")
    )
    pictures = index(tmp_path / "index", find_stores([str(one), str(two)], "--images"))
    for match in ("path", "name"):
        assert pictures.read(["a/1.jpg"], match) == b"a"
        assert pictures.read(["data/b/1.jpg"], match) == b"b"
    with pytest.raises(NoPicture, match="only in another folder"):
        pictures.read(["b/a-only.jpg"], "path")
    assert pictures.read(["b/a-only.jpg"], "name") == b"o"
    for name in ("1.jpg", "c/1.jpg"):
        with pytest.raises(NoPicture, match="several different"):
            pictures.read([name], "name")


def test_copies_of_a_picture_are_no_conflict(tmp_path):
    found = [store(tmp_path / name, "folder", {"1.jpg": b"same"}) for name in "ab"]
    assert index(tmp_path / "i", find_stores(map(str, found), "--images")).read(["1.jpg"], "name") == b"same"


def test_exact_names_are_whole_urls(tmp_path):
    (found,) = find_stores([str(store(tmp_path / "d", "tar", {"0.jpg": b"zero", "1.jpg": b"one"}))], "--images")
    urls = {"https://x.org/a.jpg": 0, "https://y.org/a.jpg": 1}
    places = list(found.places(0))
    (tmp_path / "i").mkdir()
    write_index(tmp_path / "i", [found], [(url, places[number]) for url, number in urls.items()], exact=True)
    pictures = Pictures(tmp_path / "i")
    assert [pictures.read([url], "exact") for url in urls] == [b"zero", b"one"]
    with pytest.raises(NoPicture, match="picture missing"):
        pictures.read(["a.jpg"], "exact")


def test_an_empty_store_has_no_picture(tmp_path):
    pictures = index(tmp_path / "i", find_stores([str(store(tmp_path / "d", "folder", {}))], "--images"))
    with pytest.raises(NoPicture):
        pictures.read(["a.jpg"], "name")


@given(names=st.lists(st.text(min_size=1, max_size=20), unique=True, max_size=30))
def test_any_names_are_found(names, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any") / "i"
    folder.mkdir()
    source = Store(path=str(folder), kind="tar")
    places = [(name, Place(0, name, number, number, 0)) for number, name in enumerate(names)]
    assert write_index(folder, [source], places, exact=True) == len(names)
    pictures = Pictures(folder)
    assert [pictures.find([name], "exact").offset for name in names] == list(range(len(names)))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.tar", b"", "neither a tar nor a zip"),
        ("a.tar", b"hello" * 200, "neither a tar nor a zip"),
        ("a.tar.gz", b"\x1f\x8b\x08" + bytes(600), "compressed as a whole.*gunzip"),
        ("none.zip", None, "is not there"),
    ],
)
def test_what_is_no_store_is_the_users_error(name, data, message, tmp_path):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        find_stores([str(tmp_path / name)], "--images")


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_truncated_archive_is_named(kind, tmp_path):
    path = store(tmp_path / "data", kind, FILES)
    os.truncate(path, path.stat().st_size - (9000 if kind == "tar" else 30))
    with pytest.raises(UserError, match=r"data\.(tar|zip).*(truncated|neither)"):
        list(find_stores([str(path)], "--images")[0].places(0))


def test_links_and_devices_of_a_tar_are_never_followed(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, (kind, target) in enumerate(
            [(tarfile.SYMTYPE, "secret.jpg"), (tarfile.LNKTYPE, "../secret.jpg"), (tarfile.CHRTYPE, "")]
        ):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.type, info.linkname = kind, target
            tar.addfile(info)
        info = tarfile.TarInfo("../../evil.jpg")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"evil"))
    pictures = index(tmp_path / "i", find_stores([str(tmp_path / "a.tar")], "--images"))
    for number in range(3):
        with pytest.raises(NoPicture, match="missing"):
            pictures.read([f"{number}.jpg"], "name")
    # A name that leads out is a name like others: its bytes come from the archive.
    assert pictures.read(["evil.jpg"], "name") == b"evil"


def test_zips_that_lie_about_sizes_are_bounded(tmp_path, monkeypatch):
    path = store(tmp_path / "bomb", "deflated", {"a.jpg": bytes(5_000_000)})
    monkeypatch.setattr(stores, "MAX_FILE_BYTES", 1 << 20)
    pictures = index(tmp_path / "i", find_stores([str(path)], "--images"))
    with pytest.raises(NoPicture, match="too large"):
        pictures.read(["a.jpg"], "name")


def test_encrypted_and_damaged_members_cannot_be_unpacked(tmp_path):
    path = store(tmp_path / "a", "deflated", {"a.jpg": b"a" * 1000, "b.jpg": b"b" * 1000})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        first, second = (info.header_offset for info in archive.infolist())
    data[first + 36 : first + 40] = b"\xff" * 4
    data[second] = 0
    path.write_bytes(data)
    pictures = index(tmp_path / "i", find_stores([str(path)], "--images"))
    for name in ("a.jpg", "b.jpg"):
        with pytest.raises(NoPicture, match="cannot be unpacked"):
            pictures.read([name], "name")


def test_many_archives_need_few_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "_HANDLES", 3)
    for number in range(10):
        store(tmp_path / "d" / str(number), "folder", {})
        store(tmp_path / "d" / f"s{number}", "tar", {f"{number}.jpg": str(number).encode()})
    found = find_stores([str(tmp_path / "d")], "--images")
    reader = StoreReader(found)
    places = [place for number, one in enumerate(found) for place in one.places(number)]
    before = len(os.listdir("/proc/self/fd"))
    assert [reader.read(place) for place in places * 2] == [str(n).encode() for n in range(10)] * 2
    assert len(os.listdir("/proc/self/fd")) - before <= 3


def test_folders_linked_in_a_circle_are_listed_once(tmp_path):
    root = store(tmp_path / "d", "folder", {"sub/a.jpg": b"a"})
    (root / "sub" / "up").symlink_to(root)
    (root / "gone.jpg").symlink_to(root / "nothing")
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "b.jpg").write_bytes(b"b")
    (root / "linked").symlink_to(tmp_path / "far")
    names = [place.name for place in find_stores([str(root)], "--images")[0].places(0)]
    assert sorted(names) == ["linked/b.jpg", "sub/a.jpg"]


def test_a_picture_that_is_gone_since_is_counted(tmp_path):
    root = store(tmp_path / "d", "folder", {"a.jpg": b"a"})
    pictures = index(tmp_path / "i", find_stores([str(root)], "--images"))
    (root / "a.jpg").unlink()
    with pytest.raises(NoPicture, match="cannot be read"):
        pictures.read(["a.jpg"], "name")


def test_a_tar_whose_members_run_backwards_is_refused_and_not_read_for_ever(tmp_path):
    path = store(tmp_path / "a", "tar", {"0.jpg": b"x" * 600, "1.jpg": b"y"})
    data = bytearray(path.read_bytes())
    # A size below zero, in the binary form that GNU tar knows; the checksum is made to fit.
    data[1536 + 124 : 1536 + 136] = (-2048).to_bytes(12, "big", signed=True)
    data[1536 + 148 : 1536 + 156] = b" " * 8
    data[1536 + 148 : 1536 + 156] = b"%06o\0 " % sum(data[1536:2048])
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.tar: truncated or no tar"):
        list(find_stores([str(path)], "--images")[0].places(0))


def test_a_tar_that_claims_a_name_beyond_all_memory_is_refused(tmp_path):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 60
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    (found,) = find_stores([str(tmp_path / "a.tar")], "--images")
    with pytest.raises(UserError, match=r"a\.tar: truncated or no tar"):
        list(found.places(0))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_of_every_form_of_tar_are_read(form, tmp_path):
    names = [
        "short.jpg",
        "folder/" * 12 + "ä" * 30 + ".jpg",
        "n" * (96 if form == tarfile.USTAR_FORMAT else 300) + ".jpg",
    ]
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = number + 600
            tar.addfile(info, io.BytesIO(bytes([number]) * info.size))
    (found,) = find_stores([str(tmp_path / "a.tar")], "--images")
    reader = StoreReader([found])
    assert {place.name: reader.read(place) for place in found.places(0)} == {
        name: bytes([number]) * (number + 600) for number, name in enumerate(names)
    }


def test_a_tar_whose_last_member_is_a_zip_is_a_tar(tmp_path):
    inner = store(tmp_path / "inner", "zip", {"deep.jpg": b"d"}).read_bytes()
    path = store(tmp_path / "a", "tar", {"a.jpg": b"a", "b.zip": inner})
    (found,) = find_stores([str(path)], "--images")
    assert [place.name for place in found.places(0)] == ["a.jpg", "b.zip"]


def test_a_zip_with_a_name_that_is_no_text_is_the_users_error(tmp_path):
    path = store(tmp_path / "a", "zip", {"é.jpg": b"a"})
    path.write_bytes(path.read_bytes().replace("é.jpg".encode(), b"\xff\xff.jpg"))
    (found,) = find_stores([str(path)], "--images")
    with pytest.raises(UserError, match=r"a\.zip: truncated or no zip"):
        list(found.places(0))


def test_hidden_files_that_macos_puts_beside_archives_are_none(tmp_path):
    store(tmp_path / "d" / "a", "folder", {"._a.tar": b"Mac OS X", "b.jpg": b"b"})
    store(tmp_path / "d" / "a" / "a", "tar", {"a.jpg": b"a"})
    (tmp_path / "d" / "._a.zip").write_bytes(b"Mac OS X")
    assert [one.kind for one in find_stores([str(tmp_path / "d")], "--images")] == ["folder", "tar"]


class Fitting(Pictures):
    """Gives all places that fit equally well, instead of the one that they all are a copy of."""

    def _only(self, places: list[Place]) -> list[Place]:  # type: ignore[override]
        return places


def agreeing(name: str, places: list[tuple[str, list[str]]], match: str) -> set[str]:
    """The rule, without an index: the places that share the most last parts with a name, by the name of each."""
    wanted, best, most = name.split("/")[::-1], set[str](), 0
    for place, parts in places:
        same = next((n for n, (a, b) in enumerate(zip(wanted, parts, strict=False)) if a != b), None)
        if same is not None and match == "path":
            continue
        count = min(len(wanted), len(parts)) if same is None else same
        if count > most:
            best, most = set(), count
        if count == most and most:
            best.add(place)
    return best


PATHS = st.lists(st.sampled_from("ab"), min_size=1, max_size=6).map("/".join)


@given(names=st.lists(PATHS, unique=True, max_size=20), name=PATHS, kind=st.sampled_from(["folder", "tar"]))
def test_the_index_finds_what_agrees_best(names, name, kind, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any") / "i"
    folder.mkdir()
    source = Store(path="/x/b", kind=kind)
    write_index(folder, [source], [(one, Place(0, one, 0, 0, 0)) for one in names], exact=False)
    places = [(one, one.split("/")[::-1] + (["b"] if kind == "folder" else [])) for one in names]
    for match in ("path", "name"):
        try:
            found = {place.name for place in Fitting(folder).find([name], match)}
        except NoPicture:
            found = set()
        assert found == agreeing(name, places, match)


def test_thousands_of_folders_with_a_picture_of_one_name_take_no_longer(tmp_path, monkeypatch):
    (source,) = [Store(path="/x/frames", kind="tar")]
    names = [f"clip{number}/left/0.jpg" for number in range(3000)]
    write_index(tmp_path, [source], ((one, Place(0, one, at, 1, 0)) for at, one in enumerate(names)), exact=False)
    pictures, looked = Pictures(tmp_path), []
    monkeypatch.setattr(
        pictures, "_best", lambda *given: looked.append(len(given[1])) or Pictures._best(pictures, *given)
    )
    for wanted in ("clip77/left/0.jpg", "/far/frames/clip77/left/0.jpg"):
        for match in ("path", "name"):
            assert pictures.find([wanted], match).offset == 77
    assert looked == [1, 1, 1, 1]


def test_a_damaged_file_of_a_zip_is_found_by_its_checksum(tmp_path):
    path = store(tmp_path / "a", "zip", {"a.jpg": b"a" * 100, "b.jpg": b"b" * 100})
    path.write_bytes(path.read_bytes().replace(b"a" * 100, b"a" * 99 + b"A", 1))
    pictures = index(tmp_path / "i", find_stores([str(path)], "--images"))
    with pytest.raises(NoPicture, match="cannot be unpacked"):
        pictures.read(["a.jpg"], "name")
    assert pictures.read(["b.jpg"], "name") == b"b" * 100


def test_a_zip_that_was_written_to_a_pipe_is_read(tmp_path):
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def tell(self) -> int:
            raise io.UnsupportedOperation

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:
        archive.writestr("a.jpg", b"a" * 100)
    (tmp_path / "a.zip").write_bytes(pipe.getvalue())
    pictures = index(tmp_path / "i", find_stores([str(tmp_path / "a.zip")], "--images"))
    assert pictures.read(["a.jpg"], "name") == b"a" * 100
