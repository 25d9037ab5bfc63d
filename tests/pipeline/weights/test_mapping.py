"""Rules of names in both directions, filling a module, and reading files."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from data_prep.errors import UserError
from pipeline.weights.mapping import (
    NameMap,
    convert,
    drop,
    export_tensors,
    fill,
    import_tensors,
    join_rows,
    keep,
    rename,
    split_rows,
    tied,
)
from pipeline.weights.reading import read_foreign

MAP = NameMap(
    (
        drop("{rest:.*}position_ids"),
        split_rows("a.{i}.qkv.{p}", "b.{i}.q.{p}", "b.{i}.k.{p}", "b.{i}.v.{p}"),
        join_rows(["c.{i}.q", "c.{i}.k"], "d.{i}.qk"),
        tied("word", "word", "decoder.weight"),
        convert("flat", "tall", torch.t, torch.t),
        rename("norm{n:[12]}.{p}", "ln{n:[12]}.{p}"),
        keep("same.{rest}"),
    )
)


def foreign() -> dict[str, torch.Tensor]:
    return {
        "a.0.qkv.weight": torch.randn(6, 2), "a.11.qkv.bias": torch.randn(6), "c.3.k": torch.randn(2, 2),
        "c.3.q": torch.randn(2, 2), "word": torch.ones(3), "decoder.weight": torch.ones(3),
        "flat": torch.randn(2, 3), "norm2.bias": torch.randn(2), "same.x.y": torch.randn(1),
    }  # fmt: skip


def test_there_and_back() -> None:
    given = foreign()
    imported = import_tensors({**given, "e.position_ids": torch.arange(3)}, MAP)
    assert imported.dropped == ["e.position_ids"]
    assert not imported.unknown
    assert torch.equal(imported.tensors["b.0.k.weight"], given["a.0.qkv.weight"][2:4])
    assert torch.equal(imported.tensors["d.3.qk"], torch.cat([given["c.3.q"], given["c.3.k"]]))
    assert imported.tensors["tall"].shape == (3, 2)
    assert torch.equal(imported.tensors["ln2.bias"], given["norm2.bias"])
    back = export_tensors(imported.tensors, MAP)
    assert not back.unknown
    assert set(back.tensors) == set(given)
    assert all(torch.equal(back.tensors[name], tensor) for name, tensor in given.items())


def test_unknown_names_and_halves_are_listed() -> None:
    imported = import_tensors({"norm3.bias": torch.ones(1), "c.0.q": torch.ones(1), "xa.0.qkv.p": torch.ones(1)}, MAP)
    assert sorted(imported.unknown) == ["c.0.q", "norm3.bias", "xa.0.qkv.p"]
    assert not imported.tensors


@pytest.mark.parametrize("present", ["word", "decoder.weight"])
def test_one_of_tied_names_is_enough(present: str) -> None:
    assert set(import_tensors({present: torch.ones(2)}, MAP).tensors) == {"word"}


def test_tied_tensors_that_differ_and_uneven_parts_are_refused() -> None:
    with pytest.raises(UserError, match=r"word and decoder\.weight must be one tensor"):
        import_tensors({"word": torch.ones(2), "decoder.weight": torch.zeros(2)}, MAP)
    with pytest.raises(UserError, match="not 3 equal parts"):
        import_tensors({"a.0.qkv.bias": torch.ones(4)}, MAP)


def test_filling_is_strict_and_lists_what_is_wrong() -> None:
    module = nn.Linear(2, 3)
    before = module.weight.clone()
    with pytest.raises(UserError, match=r"1 missing \(bias\); 2 unknown \(far, odd\); 1 wrongly shaped") as error:
        fill(module, {"weight": torch.ones(2, 2), "odd": torch.ones(1)}, unknown=["far"])
    assert "2x2 where 3x2 is wanted" in str(error.value)
    assert torch.equal(module.weight, before)
    fill(module, {"weight": torch.ones(3, 2)}, ["bias"])
    assert torch.equal(module.weight, torch.ones(3, 2))


def test_long_lists_are_cut_and_counted() -> None:
    with pytest.raises(UserError, match=r"12 unknown \(n0, .*n9 and 2 more\)"):
        fill(nn.Identity(), {f"n{number}": torch.ones(1) for number in range(12)})


def test_shared_parameters_need_one_name_and_no_contradiction() -> None:
    module = nn.ModuleDict({"one": nn.Linear(2, 2, bias=False)})
    module["two"] = module["one"]
    fill(module, {"two.weight": torch.ones(2, 2)})
    assert torch.equal(module["one"].weight, torch.ones(2, 2))
    with pytest.raises(UserError, match="must be one tensor"):
        fill(module, {"one.weight": torch.ones(2, 2), "two.weight": torch.zeros(2, 2)})


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".bin", ".safetensors"])
def test_files_and_their_wrappers(tmp_path: Path, suffix: str, wrapper: str | None) -> None:
    path, tensors = tmp_path / f"w{suffix}", {"x": torch.arange(3.0)}
    if suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors if wrapper is None else {wrapper: tensors, "epoch": 3}, path)
    assert torch.equal(read_foreign(path).tensors["x"], tensors["x"])


class Malicious:
    def __reduce__(self) -> Any:
        return (print, ("this must never run",))


def test_nothing_but_tensors_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": {"x": Malicious()}}, tmp_path / "evil.pth")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Malicious(), protocol=2))
    for name in ("evil.pth", "plain.pt"):
        with pytest.raises(UserError, match="objects of other programs"):
            read_foreign(tmp_path / name)
    assert "never run" not in capsys.readouterr().out


def test_wrong_files_are_named(tmp_path: Path) -> None:
    cases: dict[str, tuple[bytes | None, str]] = {
        "gone.pth": (None, "is missing"),
        "gone.safetensors": (None, "is missing"),
        "gone": (None, "no file or folder"),
        "picture.jpg": (b"x", "not a file of weights"),
        "broken.pth": (b"not a checkpoint", "cannot be read"),
        "empty.pth": (b"", "cannot be read"),
        "cut.safetensors": (b"1234567890", "not a readable safetensors"),
    }
    for name, (content, words) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=words):
            read_foreign(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"x": torch.ones(1), "epoch": 3}, tmp_path / "mixed.pth")
    (tmp_path / "folder").mkdir()
    for name, words in {
        "list.pth": "no state dict",
        "mixed.pth": "more than tensors: epoch",
        "folder": "needs",
    }.items():
        with pytest.raises(UserError, match=words):
            read_foreign(tmp_path / name)


def test_a_folder_has_its_config(tmp_path: Path) -> None:
    safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "blip"}')
    read = read_foreign(tmp_path)
    assert read.config == {"model_type": "blip"}
    assert set(read.tensors) == {"x"}
