"""Position tables for other resolutions against the originals'."""

from pathlib import Path

import pytest

from pipeline.models.vision import resize_positions
from pipeline.weights.positions import fit_positions
from tests.oracles.vectors import assert_same, files, load


@pytest.mark.parametrize("path", files("position table resize"))
def test_resized_tables_are_the_originals(path: Path | None) -> None:
    vectors = load(path)
    wanted = vectors.under("out/")
    assert wanted
    for name, table_1ND in wanted.items():
        number = name.split("/")[0]
        old_1ND, side = vectors[f"in/{number}/pos_embed"], int(vectors[f"in/{number}/new_grid"])
        old_side = round((old_1ND.shape[1] - 1) ** 0.5)
        assert_same(resize_positions(old_1ND, (old_side, old_side), (side, side)), table_1ND)
        assert_same(fit_positions({"table": old_1ND}, "table", (side, side))["table"], table_1ND)
