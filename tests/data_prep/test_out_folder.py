"""What `prepare` does to, and refuses to do to, the folder that shards shall go to."""

import subprocess
import sys
import threading
from pathlib import Path

import fsspec
import pytest

from data_prep.clean import CleanConfig
from data_prep.errors import UserError
from data_prep.executors import InProcess
from data_prep.index import INDEX
from data_prep.lock import FolderLock
from data_prep.sources import SourceConfig, prepare
from data_prep.verify import verify_folder
from tests.data_prep.published_files import images, img2dataset_files, karpathy, write
from tests.data_prep.samples import contents
from tests.data_prep.stored import store

ROOT = Path(__file__).resolve().parents[2]
SMALL = SourceConfig(sizes={"train": 20, "val": 4, "test": 0, "unseen": 0}, shard_samples=10)


def test_the_shards_of_a_download_are_not_written_over_by_what_is_made_of_them(tmp_path):
    (tmp_path / "cc3m/train").mkdir(parents=True)
    tar = store(tmp_path / "cc3m/train/00000", "tar", img2dataset_files({"http://x.org/0": "a dog"}))
    before = tar.read_bytes()
    for images_in in ("cc3m", "cc3m/train", "cc3m/train/00000.tar"):
        config = SourceConfig(name="cc3m", images=(str(tmp_path / images_in),))
        with pytest.raises(UserError, match="where pictures are read"):
            prepare(config, tmp_path / "cc3m", workers=1)
    assert tar.read_bytes() == before
    assert list((tmp_path / "cc3m").iterdir()) == [tmp_path / "cc3m/train"]


def test_shards_do_not_go_among_the_pictures_that_they_are_made_of(tmp_path):
    folder = store(tmp_path / "mine", "folder", {"a.jpg": b"", "a.txt": b"a dog"})
    with pytest.raises(UserError, match="where pictures are read"):
        prepare(SourceConfig(name="folder", images=(str(folder),)), folder / "shards", workers=1)
    assert not (folder / "shards").exists()


def test_shards_of_another_data_set_are_left_alone_but_in_a_runs_own_folder(tmp_path):
    prepare(SMALL, tmp_path / "out", workers=1)
    file = write(tmp_path / "dataset_coco.json", karpathy("coco", {"a.jpg": "train"}))
    coco = SourceConfig(name="coco", annotations=(file,), images=(images(tmp_path, "tar", ["a.jpg"]),), sizes=NO_TESTS)
    before = contents(tmp_path / "out")
    for _ in "finished", "killed":
        with pytest.raises(UserError, match=r"holds other shards \(shapes/train, not coco/train\)"):
            prepare(coco, tmp_path / "out", workers=1)
        assert contents(tmp_path / "out") == before
        (tmp_path / "out/train" / INDEX).unlink(missing_ok=True)
        (tmp_path / "out/train/.parts").mkdir(exist_ok=True)
        (tmp_path / "out/train/.parts/begun").write_text("shapes/train")
        before = contents(tmp_path / "out")
    assert prepare(coco, tmp_path / "out", workers=1, replace_others=True)["written"] == 1


NO_TESTS = {"val": 0, "test": 0}


def test_a_users_link_to_another_disk_stays_and_shards_go_where_it_leads(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").mkdir()
    link = tmp_path / "out/train"
    link.symlink_to(tmp_path / "disk", target_is_directory=True)
    with pytest.raises(Killed):
        prepare(SMALL, tmp_path / "out", executor=Killing())
    for remove in (False, True, False):  # goes on, and is then finished, also in a run's own folder
        assert prepare(SMALL, tmp_path / "out", workers=1, replace_others=remove)["written"] == 24
        assert link.is_symlink() and verify_folder(tmp_path / "disk") == []
    prepare(SMALL, tmp_path / "whole", workers=1)
    assert contents(tmp_path / "disk") == contents(tmp_path / "whole/train")


def test_nothing_is_written_through_a_link_into_other_shards(tmp_path):
    prepare(SMALL, tmp_path / "mine", workers=1)
    (tmp_path / "out").mkdir()
    link, before = tmp_path / "out/train", contents(tmp_path / "mine")
    link.symlink_to(tmp_path / "mine/val", target_is_directory=True)
    with pytest.raises(UserError, match=r"out/train is a link to other shards \(.*mine/val\)"):
        prepare(SMALL, tmp_path / "out", workers=1)
    assert link.is_symlink()
    assert prepare(SMALL, tmp_path / "out", workers=1, replace_others=True)["written"] == 24
    assert not link.is_symlink() and contents(tmp_path / "mine") == before


def test_a_link_that_leads_nowhere_is_not_removed_without_a_word(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/train").symlink_to(tmp_path / "not mounted")
    with pytest.raises(UserError, match="is a link to what is not there"):
        prepare(SMALL, tmp_path / "out", workers=1)
    assert (tmp_path / "out/train").is_symlink()


def test_tars_of_nobody_knows_whom_are_left_alone(tmp_path):
    (tmp_path / "out/train").mkdir(parents=True)
    (tmp_path / "out/train/00000.tar").write_bytes(b"precious")
    with pytest.raises(UserError, match="holds other shards"):
        prepare(SMALL, tmp_path / "out", workers=1)
    assert (tmp_path / "out/train/00000.tar").read_bytes() == b"precious"


class Killed(Exception):
    pass


class Killing(InProcess):
    """Stands for a kill -9 at the first side record: the shard is there, and no more."""

    def map(self, work, numbers):
        for number in numbers:
            work(number)
            (work.target.folder / ".parts/00000").unlink()
            raise Killed


def test_a_job_killed_before_its_first_side_record_goes_on(tmp_path):
    with pytest.raises(Killed):
        prepare(SMALL, tmp_path / "out", executor=Killing())
    assert (tmp_path / "out/train/00000.tar").exists()
    prepare(SMALL, tmp_path / "out", workers=1)
    prepare(SMALL, tmp_path / "whole", workers=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_two_commands_at_once_do_not_take_each_others_files_away(tmp_path):
    (tmp_path / "out").mkdir()
    with FolderLock(tmp_path / "out"), pytest.raises(UserError, match="in use by process"):
        prepare(SMALL, tmp_path / "out", workers=1)
    prepare(SMALL, tmp_path / "out", workers=1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train", "val"]


def test_a_lock_that_is_waited_for_while_it_is_removed_is_taken_anew(tmp_path):
    held, failures = [], []

    def take() -> None:
        for _ in range(200):
            try:
                with FolderLock(tmp_path):
                    held.append(1)
                    failures.extend([1] if len(held) > 1 else [])
                    held.pop()
            except UserError:
                pass

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["out", "cache"])
def test_a_home_folder_that_no_shell_expanded(option, tmp_path):
    pictures = images(tmp_path, "tar", ["a.jpg"])
    home = {"out": "~/made", "cache": str(tmp_path / "made")}
    script = f"""
from data_prep.sources import SourceConfig, prepare
if __name__ == "__main__":
    cache = None if {option!r} == "out" else "~/cache"
    config = SourceConfig(name="table", annotations=({str(tmp_path / "a.csv")!r},), images=({pictures!r},), cache=cache)
    assert prepare(config, {home[option]!r}, workers=1)["written"] == 1
"""
    write(tmp_path / "a.csv", "image,caption\na.jpg,a dog\n")
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path, env={"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["train"]


def test_the_tables_of_a_job_into_a_store_are_found_again_and_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    file = write(tmp_path / "dataset_coco.json", karpathy("coco", {"a.jpg": "train", "b.jpg": "train"}))
    pictures = images(tmp_path, "tar", ["a.jpg", "b.jpg"])
    config = SourceConfig(name="coco", annotations=(file,), images=(pictures,), sizes=NO_TESTS, shard_samples=1)

    class Stopping(InProcess):
        def map(self, work, numbers):
            raise Killed

    seen = []
    for _ in range(2):
        with pytest.raises(Killed):
            prepare(config, "memory://tables/x", executor=Stopping())
        (tables,) = (tmp_path / "cache/trimline").glob("*/*")
        seen.append((tables, tables.stat().st_ino))
    assert seen[0] == seen[1]
    prepare(config, "memory://tables/x", workers=1)
    assert list((tmp_path / "cache/trimline").iterdir()) == []
    assert list((tmp_path / "tmp").iterdir()) == []
    fsspec.filesystem("memory").rm("/tables", recursive=True)


def test_a_split_that_a_file_has_nothing_of_does_not_stop_the_others(tmp_path):
    file = write(tmp_path / "dataset_coco.json", karpathy("coco", {"a.jpg": "train"}))
    config = SourceConfig(name="coco", annotations=(file,), images=(images(tmp_path, "tar", ["a.jpg"]),))
    account = prepare(config, tmp_path / "out", workers=1)
    assert {split: of["asked"] for split, of in account["splits"].items()} == {"train": 1, "val": 0, "test": 0}
    assert [verify_folder(tmp_path / "out" / split) for split in ("train", "val", "test")] == [[], [], []]


def test_a_split_that_the_lists_leave_empty_does_not_stop_the_others(tmp_path):
    file = write(tmp_path / "dataset_coco.json", karpathy("coco", {"a.jpg": "train", "b.jpg": "test", "c.jpg": "test"}))
    pictures = images(tmp_path, "tar", ["a.jpg", "b.jpg", "c.jpg"])
    (tmp_path / "tested.txt").write_text("coco:b.jpg\ncoco:c.jpg\n")
    config = SourceConfig(
        name="coco", annotations=(file,), images=(pictures,), sizes={"val": 0},
        clean=CleanConfig(exclude=[str(tmp_path / "tested.txt")]),
    )  # fmt: skip
    account = prepare(config, tmp_path / "out", workers=1)
    assert account["splits"]["test"]["skipped"] == {"excluded by id": 2}
    assert (account["asked"], account["written"]) == (3, 1)
    assert [verify_folder(tmp_path / "out" / split) for split in ("train", "test")] == [[], []]
    assert prepare(config, tmp_path / "out", workers=1) == account  # both are finished
    (tmp_path / "tested.txt").write_text("a.jpg\nb.jpg\nc.jpg\n")
    for _ in range(2):
        with pytest.raises(UserError, match="no sample of coco could be written"):
            prepare(config, tmp_path / "out", workers=1)
