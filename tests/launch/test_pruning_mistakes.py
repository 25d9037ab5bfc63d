"""What a user may get wrong about pruning is one line that names the key, before anything is read or written."""

import json
from pathlib import Path

import pytest

from launch.cli import main
from tests.pipeline.small import OTHER_BACKBONES

TINY = str(Path(__file__).parent / "tiny.yaml")
METER = {"backbone": "meter", **OTHER_BACKBONES["meter"]}


def words(section: str, values: dict[str, object]) -> list[str]:
    return [
        f"--{section}.{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()
    ]


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("pretrain.pruning.elip", {"ratios": [0.4, 0.65, 0.9]}, "must lie in (0, 1) and fall from stage to stage"),
        ("pretrain.pruning.elip", {"ratios": "[0.9, .nan, 0.2]"}, "must lie in (0, 1) and fall from stage to stage"),
        ("pretrain.pruning.elip", {"ratios": [0.9, 0.5]}, "must hold one ratio for each"),
        ("pretrain.pruning.elip", {"ratios": 0.5}, "Expected a list"),
        ("pretrain.pruning.elip", {"depths": [2, 2, 6, 2]}, "add up to 12, the vision tower has 4 layers"),
        ("pretrain.pruning.elip", {"depths": [1, 1, 2, 0]}, "of at least one layer each"),
        ("pretrain.pruning.elip", {"ratios": [0.95, 0.5, 0.4], "count_base": "tokens"}, "keeps 16 of 16 tokens"),
        ("pretrain.pruning.elip", {"merge": False, "ratios": [0.9, 0.89, 0.2]}, "keeps 14 of 14 tokens"),
        ("pretrain.pruning.elip", {"guidance": "text"}, "Expected one of ['stage', 'query', 'none']"),
        ("pretrain.pruning.evit", {"layers": [1, 9]}, ""),
        ("model", {"vision.width": 48}, "model.text.width=24 must equal model.vision.width=48"),
        ("model", {**METER, "text.width": 48}, "model.text.width=48 must equal model.vision.width=24"),
        ("model", {"vision.patch": 7}, "vision.height=32 must be a multiple of vision.patch=7; try 35"),
        ("model", {"vision.height": 40, "vision.width_px": 40}, "the loader gives 32 x 32"),
        ("model", {"vision.mlp_ratio": "inf"}, "vision.mlp_ratio"),
        ("model", {**METER, "vision.depth": 11}, "add up to 4, the vision tower has 11 layers"),
    ],
)
def test_one_line_before_anything_begins(
    section: str, values: dict[str, object], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--pretrain.pruning.method=evit"] if section.endswith("evit") else []
    assert main(["pretrain", TINY, "--out", str(tmp_path / "run"), *words(section, values), *more]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert (said or "evit.layers=[1, 9] names layer 9") in lines[0]
    assert not (tmp_path / "run").exists()


def test_a_table_of_twelve_layers_does_not_fit_meters_eleven(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """METER's own recipe fits its tower; the other backbones' table does not, and the line says what to do."""
    recipe = ["configs/models/meter_base.yaml", "configs/pretrain/meter_4m.yaml", "--data.name", "shapes"]
    recipe += ["--cluster.workers", "1", "--cluster.gpus_per_worker", "0", "--launcher", "local"]
    table = words("pretrain.pruning.elip", {"depths": [2, 2, 6, 2]})
    assert main(["pretrain", *recipe, "--out", str(tmp_path / "run"), *table]) == 2
    error = capsys.readouterr().err
    assert "elip.depths=[2, 2, 6, 2] add up to 12, the vision tower has 11 layers; make them equal" in error
