"""What is kept of every test instance: written, read, and told apart from other data."""

from pathlib import Path

import pytest

from data_prep.errors import UserError
from pipeline.measure.bootstrap import Series
from pipeline.measure.outcomes import (
    NotKeptError,
    Outcomes,
    digest_of,
    numbered,
    outcomes_file,
    read_outcomes,
    write_outcomes,
)

PICTURES = Series(names=["a", "ß"], values=[1.0, 1 / 3], groups=["g0", "g1"])
TEXTS = Series(names=["a#0", "a#1", "b#0"], values=[0.0, 1.0, 1.0], groups=["g0", "g0", "g1"])


def test_outcomes_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = outcomes_file(tmp_path / "evaluate-m", "m", "shapes/test")
    assert path == tmp_path / "evaluate-m" / "outcomes" / "m-shapes-test.npz"
    told = [Outcomes(metric="accuracy yes/no", series=(TEXTS,)), Outcomes(metric="R@10", series=(PICTURES, TEXTS))]
    write_outcomes(path, "d1", told)
    images, texts = read_outcomes(path, "R@10")
    assert (images.names, images.values, images.groups) == (PICTURES.names, PICTURES.values, ["d1/g0", "d1/g1"])
    assert (texts,) == read_outcomes(path, "accuracy yes/no")
    before = path.read_bytes()
    write_outcomes(path, "d1", told)
    assert path.read_bytes() == before


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    path = outcomes_file(tmp_path / "evaluate-m", "m", "test")
    with pytest.raises(NotKeptError, match="is not there"):
        read_outcomes(path, "accuracy")
    write_outcomes(path, "d1", [Outcomes(metric="accuracy", series=(TEXTS,))])
    with pytest.raises(NotKeptError, match=r"m-test\.npz keeps nothing of consistency"):
        read_outcomes(path, "consistency")
    whole = path.read_bytes()
    for damaged in (b"", b"no archive", whole[: len(whole) // 2], whole.replace(b"values", b"valueX")):
        path.write_bytes(damaged)
        with pytest.raises(
            UserError,
            match=r"m-test\.npz does not tell what became of instances by accuracy \(",
        ):
            read_outcomes(path, "accuracy")


def test_ten_thousand_statements_take_little_room(tmp_path: Path) -> None:
    names = numbered(f"test-{n // 4:08d}" for n in range(10_400))
    told = Series(
        names=names, values=[float(n % 5 > 0) for n in range(10_400)], groups=[str(n // 8) for n in range(10_400)]
    )
    write_outcomes(tmp_path / "m-test.npz", "d1", [Outcomes(metric="accuracy", series=(told,))])
    assert (tmp_path / "m-test.npz").stat().st_size < 150_000
    assert read_outcomes(tmp_path / "m-test.npz", "accuracy")[0].names == names


def test_names_and_digests_tell_instances_apart() -> None:
    assert numbered(["a", "b", "a", "a"]) == ["a#0", "b#0", "a#1", "a#2"]
    asked = [("k0", "0/test/0", "it is red"), ("k1", "0/test/1", "it is blue")]
    assert digest_of(asked) == digest_of(iter(asked[::-1])), "the order of a split is its seed's"
    assert digest_of(asked) != digest_of([("k0", "1/test/0", "it is red"), asked[1]])
