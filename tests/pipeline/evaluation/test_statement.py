"""Statements of a trimmed model, dealt to ranks."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.errors import UserError
from pipeline.evaluation.exported import Evaluation
from pipeline.process import Process
from tests.pipeline.distributed import run_ranks
from tests.pipeline.evaluation.exports import split, statement_export
from tests.pipeline.evaluation.test_retrieval import on_rank, spoil


def test_processes_and_batches_change_no_score(tmp_path: Path) -> None:
    folder, data = statement_export(tmp_path / "export"), split(tmp_path / "test", 11)
    asked = Evaluation(model=folder, task="statement", split=str(data))
    wanted = on_rank(Process(), asked)
    assert (wanted["samples"], len(wanted["gmacs"])) == (22, 22)
    assert np.std(wanted["gmacs"]) > 0
    for world_size in (2, 3):
        given = Evaluation(model=folder, task="statement", split=str(data), batch_size=1)
        for result in run_ranks(on_rank, world_size, given):
            assert result["scores"] == wanted["scores"]
            assert sorted(result["gmacs"]) == sorted(wanted["gmacs"])


def test_nan_is_an_error(tmp_path: Path) -> None:
    folder, data = statement_export(tmp_path / "export"), split(tmp_path / "test", 2)
    spoil(folder, "cls_head.bias")
    with pytest.raises(UserError, match="4 of 4 scores of statements are not finite"):
        on_rank(Process(), Evaluation(model=folder, task="statement", split=str(data)))
