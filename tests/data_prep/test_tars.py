"""The reader of tars: against tarfile where a tar is good, and by itself where somebody means harm."""

import io
import os
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.tars import BadTar, group_samples, list_members, read_member, walk
from tests.data_prep.mutations import KINDS, Mutation
from tests.data_prep.samples import Plain, contents
from tests.data_prep.test_verify import make_tar

ROOT = Path(__file__).resolve().parents[2]
NAMES = st.text(st.sampled_from("abcäß/._-0"), min_size=1, max_size=300).map(lambda name: f"k{name}.txt")


def raw_header(
    name: bytes = b"a.png", size: bytes = b"%011o" % 0, kind: bytes = b"0", magic: bytes = b"ustar\00000"
) -> bytes:
    """A header with a right checksum and whatever fields."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257 : 257 + len(magic)] = magic
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=6),
    layout=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_every_dialect_is_read_as_by_tarfile(tmp_path, files, layout):
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w", format=layout) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            try:
                tar.addfile(info, io.BytesIO(data))
            except ValueError:  # too long for this layout
                continue
    with tarfile.open(path) as tar, open(path, "rb") as file:
        wanted = [(info.name, tar.extractfile(info).read()) for info in tar]
        if any(".." in name.split("/") for name, _ in wanted):
            with pytest.raises(BadTar):
                list_members(path)
            return
        assert [(member.name, read_member(file, member)) for member in list_members(path)] == wanted


def test_huge_sizes_are_written_in_binary(tmp_path):
    size = 8 * 2**30 + 5
    path = tmp_path / "0.tar"
    with open(path, "wb") as file:  # a hole of 8 GiB takes no room
        file.write(raw_header(b"a.bin", size=b"\x80" + size.to_bytes(11, "big")))
        file.seek(512 + -(-size // 512) * 512)
        file.write(bytes(1024))
    assert [(member.name, member.size) for member in list_members(path)] == [("a.bin", size)]


def test_folders_and_other_tools_files_belong_to_no_sample(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in ("./", "./a.txt", "./README", "./.DS_Store", "./._a.jpg", "./a.jpg"):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if name == "./" else tarfile.REGTYPE
            tar.addfile(info)
    groups = list(group_samples(list_members(tmp_path / "0.tar")))
    assert [(key, [member.extension for member in group]) for key, group in groups] == [("./a", ["txt", "jpg"])]


def pax(**records: str) -> bytes:
    body = b""
    for key, value in records.items():
        line = f" {key.replace('__', '.')}={value}\n".encode()
        length = len(line) + len(str(len(line) + 3))
        body += str(length).encode() + line
    return raw_header(b"PaxHeaders/a", b"%011o" % len(body), b"x") + body + bytes(-len(body) % 512)


HUGE = b"\x80" + (2**70).to_bytes(11, "big")
NASTY = {
    "a size beyond all disks": raw_header(size=HUGE),
    "a size of 8 GiB": raw_header(size=b"77777777777"),
    "a negative size": raw_header(size=b"\xff" * 12),
    "a size in words": raw_header(size=b"1e9"),
    "a long name of 8 GiB": raw_header(b"././@LongLink", b"77777777777", b"L"),
    "a long name beyond all disks": raw_header(b"././@LongLink", HUGE, b"L"),
    "a long link of 8 GiB": raw_header(b"././@LongLink", b"77777777777", b"K"),
    "a PAX header of 8 GiB": raw_header(b"PaxHeaders/a", b"77777777777", b"x"),
    "a global PAX header of 8 GiB": raw_header(b"pax_global", b"77777777777", b"g"),
    "a PAX size beyond all disks": pax(size=str(2**80)) + raw_header(),
    "a negative PAX size": pax(size="-1") + raw_header(),
    "a PAX record without end": raw_header(b"PaxHeaders/a", b"%011o" % 20, b"x")
    + b"999999999 path=aaaaaaaaa".ljust(512, b"\0"),
    "a PAX record of length 0": raw_header(b"PaxHeaders/a", b"%011o" % 20, b"x") + b"0 path=b\n".ljust(512, b"\0"),
    "PAX records of spaces": raw_header(b"PaxHeaders/a", b"%011o" % 512, b"x") + b" " * 512,
    "a sparse file by PAX": pax(GNU__sparse__major="1", GNU__sparse__minor="0")
    + raw_header(size=b"%011o" % 512)
    + b"9" * 512,
    "an old sparse file": raw_header(kind=b"S", size=b"%011o" % 0),
    "a name out of PAX": pax(path="../../etc/cron.d/x.png") + raw_header(),
    "an absolute long name": raw_header(b"././@LongLink", b"%011o" % 12, b"L")
    + b"/etc/passwd\0".ljust(512, b"\0")
    + raw_header(),
    "a device": raw_header(b"dev.png", kind=b"3"),
    "a link": raw_header(b"link.png", kind=b"2"),
    "a member of unknown type": raw_header(kind=b"Q", size=b"%011o" % 3) + b"abc".ljust(512, b"\0"),
    "extension upon extension": (raw_header(b"././@LongLink", b"%011o" % 9, b"L") + b"other.txt".ljust(512, b"\0"))
    * 200,
    "a name that is no text": raw_header(b"\xff\xfe\x80.png"),
    "headers that claim each other": b"".join(raw_header(b"k%d.png" % n, b"%011o" % (10**6)) for n in range(2000)),
    "magic words": b"ustar" * 200_000,
}


def good_sample() -> bytes:
    return b"".join(
        raw_header(name, b"%011o" % len(data)) + data.ljust(512, b"\0")
        for name, data in ((b"z.txt", b"c"), (b"z.json", b'{"captions": ["c"]}'))
    )


@pytest.mark.parametrize("name", NASTY)
def test_what_is_meant_badly_is_told_and_what_follows_is_read(tmp_path, name):
    path = tmp_path / "0.tar"
    path.write_bytes(NASTY[name] + good_sample() + bytes(1024))
    damages = []
    with open(path, "rb") as file:
        found = {member.name for member in walk(file, damages.append)}
    assert damages
    assert {"z.txt", "z.json"} <= found
    with pytest.raises(BadTar):
        list_members(path)


SCRIPT = """
import json, resource, sys, time
from pathlib import Path
from data_prep.errors import UserError
from data_prep.make_index import index_folder
from data_prep.repair import repair_folder
from data_prep.stats import count_folder, describe
from data_prep.verify import verify_folder
folder = Path(sys.argv[1])
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (192 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
told = []
for case in sorted(folder.iterdir()):
    begin = time.monotonic()
    describe(count_folder(case))
    faults = verify_folder(case)
    for make in (index_folder, repair_folder):
        try:
            make(case)
        except UserError as error:
            assert "\\n" not in str(error)
    told.append([case.name, len(faults), len(verify_folder(case)), time.monotonic() - begin])
print(json.dumps(told))
"""


def in_little_memory(folder: Path, timeout: float) -> list[list]:
    """Runs all commands of shards over each folder in a process that may take 192 MiB more than it begins with."""
    import json

    command = [sys.executable, "-c", SCRIPT, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told: list[list] = json.loads(done.stdout)
    return told


@pytest.mark.timeout(300)
def test_nothing_nasty_takes_memory_or_time_or_touches_a_file(tmp_path):
    sample = next(iter(Plain(size=1).records(0, 1)))
    good = [("good.png", sample.images[""]), ("good.txt", b"c"), ("good.json", b'{"captions": ["c"]}')]
    for number, data in enumerate(NASTY.values()):
        folder = tmp_path / "cases" / f"{number:02d}"
        folder.mkdir(parents=True)
        make_tar(folder / "0.tar", good)
        body = (folder / "0.tar").read_bytes()[: 6 * 512]
        (folder / "1.tar").write_bytes(data + body + bytes(1024))
        (folder / "0.tar").unlink()
    (tmp_path / "beside").write_text("mine")
    for name, before, after, seconds in in_little_memory(tmp_path / "cases", 280):
        assert before, name
        assert not after, name
        assert seconds < 60, name
    assert (tmp_path / "beside").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"cases", "beside"}
    beside = {Path(name).name for name in contents(tmp_path / "cases")}
    assert beside <= {"1.tar", "index.json", "samples.npy", "lost.jsonl"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_mutated_nasty_tars_take_no_memory_and_no_time(tmp_path):
    dice = random.Random(0)
    for number in range(60):
        data = b"".join(dice.choice(list(NASTY.values())) for _ in range(3)) + good_sample() + bytes(1024)
        for _ in range(dice.randint(0, 3)):
            data = Mutation(dice.choice(KINDS), dice.random(), dice.randint(1, 2000), dice.getrandbits(64)).apply(data)
        folder = tmp_path / f"{number:02d}"
        folder.mkdir()
        (folder / "0.tar").write_bytes(data)
    for name, before, _, seconds in in_little_memory(tmp_path, 580):
        assert before, name
        assert seconds < 60, name
