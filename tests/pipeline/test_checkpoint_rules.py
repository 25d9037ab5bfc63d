"""Which checkpoints stay, and what their values are."""

import math

import pytest
import torch

from data_prep.errors import UserError
from pipeline.checkpoint_rules import CheckpointConfig, Means, Saved, kept


def saved(*losses: float) -> list[Saved]:
    """Checkpoints after every 10 steps with these losses, the newest first."""
    return [Saved(name=f"s{n}", step=10 * n, metrics={"loss": loss}) for n, loss in enumerate(losses, 1)][::-1]


@pytest.mark.parametrize(
    ("rules", "names"),
    [
        ({"keep_last": 1}, "s5"),
        ({"keep_last": 2}, "s4 s5"),
        ({"keep_last": 9}, "s1 s2 s3 s4 s5"),
        ({"keep_last": 1, "keep_every_steps": 20}, "s2 s4 s5"),
        ({"keep_last": 1, "keep_best": 1}, "s2 s5"),
        ({"keep_last": 1, "keep_best": 2}, "s2 s3 s5"),
        ({"keep_last": 1, "keep_best": 1, "best_is": "highest"}, "s1 s5"),
        ({"keep_last": 1, "keep_best": 3, "best_metric": "accuracy"}, "s5"),
    ],
)
def test_what_any_rule_keeps_stays(rules: dict, names: str) -> None:
    assert kept(saved(9.0, 1.0, 2.0, math.nan, 4.0), CheckpointConfig(**rules)) == set(names.split())


@pytest.mark.parametrize("wrong", [{"keep_last": 0}, {"keep_every_steps": -1}, {"keep_best": -1}, {"path": " "}])
def test_rules_that_make_no_sense_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError, match=f"checkpoint.{next(iter(wrong))}"):
        CheckpointConfig(**wrong)


def test_going_on_needs_checkpoints_on_another_disk_than_the_log() -> None:
    with pytest.raises(UserError, match=r"if_full=go_on needs a checkpoint\.path on another disk or store"):
        CheckpointConfig(if_full="go_on")
    assert CheckpointConfig(if_full="go_on", path="/other").if_full == "go_on"


def test_means_are_of_the_steps_since_they_were_asked_for() -> None:
    means = Means()
    assert means.take() == {}
    for value in (1.0, 3.0):
        means.add({"loss": torch.tensor(value), "bad": torch.tensor(math.nan)})
    told = means.take()
    assert told.pop("loss") == 2.0 and math.isnan(told.pop("bad")) and not told
    means.add({"loss": torch.tensor(7.0)})
    assert means.take() == {"loss": 7.0}
