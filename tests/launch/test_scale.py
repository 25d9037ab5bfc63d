"""`trimline scale`: which trials there are, how they end, and what is made of them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_prep.errors import UserError
from data_prep.job import Layout
from data_prep.writer import write_split
from launch.config import RunConfig
from launch.progress import ProgressDisplay
from launch.reading import read_config
from launch.recipes import find_recipe, recipes
from launch.report.scale import largest_cells, part_cells, scale_text, write_scale_report
from launch.scaling.config import GridConfig, JudgeConfig, LargestConfig, LimitConfig, ScaleConfig
from launch.scaling.experiment import check_limits, check_split, notes, refuse_nothing, scale, search_of
from launch.scaling.grid import Trial, overrides_of, settle, trials
from launch.scaling.probing import Prober, entry_of, with_gain
from launch.scaling.recommend import recommendation
from launch.scaling.rows import at_chance, goal_of, reached, settled_seconds, with_goal
from pipeline.measure.largest_batch import Bounds, search
from pipeline.worker import parse
from tests.data_prep.samples import Plain
from tests.docs.pages import fenced
from tests.launch.scaled import GIB, evaluations, row, straight, whole

TINY = Path(__file__).parent / "tiny.yaml"
ROOT = Path(__file__).resolve().parents[2]


def config(**more: Any) -> ScaleConfig:
    return ScaleConfig(
        **{"name": "t", "out": "scale", "base": (str(TINY),), "grid": GridConfig(global_batch=(8,)), **more}
    )


# Which trials.


def test_the_grid_and_the_points_give_each_trial_once() -> None:
    grid = GridConfig(global_batch=(8, 16), micro_batch=(None, 4), pruning=(False, "query"))
    asked = config(grid=grid, points=({"global_batch": 8}, {"global_batch": 32, "pruning": "stage", "recompute": True}))
    names = [trial.name for trial in trials(asked)]
    assert names == [
        "b8-off", "b8-query", "b8-off-m4", "b8-query-m4", "b16-off", "b16-query", "b16-off-m4", "b16-query-m4",
        "b32-stage-recompute",
    ]  # fmt: skip


def test_a_trial_changes_what_it_says_and_keeps_the_rest_of_the_run() -> None:
    asked = config(samples=40, shared={"seed": 3}, prunings={"half": {"pretrain.pruning.elip.ratios": [0.9, 0.5, 0.3]}})
    words = overrides_of(asked, Trial(global_batch=16, micro_batch=4, pruning="query", precision="bf16"))
    run = read_config(RunConfig, [TINY], words)
    assert (run.seed, run.engine.micro_batch, run.engine.precision, run.cluster.workers) == (3, 4, "bf16", 1)
    assert (run.pretrain.loop.global_batch, run.pretrain.loop.steps) == (16, 5)  # four updates, and one not made
    assert (run.pretrain.pruning.method, run.pretrain.pruning.elip.guidance) == ("elip", "query")
    off = read_config(RunConfig, [TINY], overrides_of(asked, Trial(global_batch=16)))
    assert off.pretrain.pruning.chosen is None
    half = read_config(RunConfig, [TINY], overrides_of(asked, Trial(global_batch=16, pruning="half")))
    assert half.pretrain.pruning.elip.ratios == (0.9, 0.5, 0.3)


def test_combinations_that_no_run_can_be_made_of_are_left_out_with_their_reason() -> None:
    grid = GridConfig(global_batch=(8, 9), micro_batch=(4, 8), pruning=("query",), workers=(1, 2))
    asked = config(grid=grid, max_accumulation=1)
    settled, left_out = settle(asked, [TINY], trials(asked))
    assert [each.trial.name for each in settled] == ["b8-query-m8-w1"]
    reasons = {each.trial.name: each.reason for each in left_out}
    assert reasons["b9-query-m4-w1"] == "global_batch=9 is no multiple of micro_batch x workers = 4"
    assert reasons["b8-query-m4-w1"] == "global_batch=8 takes 2 parts, max_accumulation=1"
    assert "engine.name=torch, one plain process" in reasons["b8-query-m4-w2"]


def test_an_empty_grid_says_why() -> None:
    asked = config(grid=GridConfig())
    with pytest.raises(UserError, match="the grid is empty: give grid"):
        settle(asked, [TINY], trials(asked))
    asked = config(grid=GridConfig(global_batch=(9,), micro_batch=(4,)))
    with pytest.raises(UserError, match=r"nothing is left of 2 combinations: b9-off-m4: global_batch=9 is no multiple"):
        settle(asked, [TINY], trials(asked))
    asked = config(grid=GridConfig(global_batch=(8,)), shared={"pretrained": "weights"})
    with pytest.raises(UserError, match="weights: a scaling experiment pre-trains its model; leave the key out"):
        settle(asked, [TINY], trials(asked))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"points": ({"global_batch": 8, "micro": 4},)}, "points: unknown key micro; did you mean micro_batch"),
        ({"points": ({"pruning": "query"},)}, "has no global_batch"),
        ({"points": ({"global_batch": 0},)}, r"points\[0\]\.global_batch=0 must be a whole number of at least 1"),
        ({"points": ({"global_batch": "64"},)}, r"points\[0\]\.global_batch='64' must be a whole number"),
        ({"points": ({"global_batch": None},)}, r"points\[0\]\.global_batch=None must be a whole number"),
        ({"points": ({"global_batch": 8}, {"global_batch": [8]})}, r"points\[1\]\.global_batch=\[8\] must be"),
        ({"points": ({"global_batch": 8, "micro_batch": True},)}, r"points\[0\]\.micro_batch=True must be"),
        ({"points": ({"global_batch": 8, "pruning": ["query"]},)}, r"points\[0\]\.pruning=\['query'\] must be a word"),
        ({"grid": {"global_batch": (0,)}}, "grid.global_batch=0 must be at least 1"),
        ({"grid": {"pruning": ("quary",)}}, "pruning 'quary' is not known; give off, stage, query"),
        ({"largest": {"first": (8, 8)}}, "two rising batches"),
        ({"largest": {"first": (8, 13), "step": 4}}, "whole steps of 4"),
        ({"largest": {"pruning": ("query",)}}, "must begin with off"),
        ({"largest": {"memory_gib": -1.0}}, "largest.memory_gib=-1.0 must be above 0"),
        ({"prunings": {"../half": {}}}, r"prunings\.\.\./half: folders are named so; take letters"),
        ({"min_steps": 1, "warmup": 1}, "scale.min_steps=1 must be at least 2"),
        ({"base": ()}, "must name at least one configuration"),
    ],
)
def test_what_cannot_be_tried_is_refused(more: dict[str, Any], message: str) -> None:
    kinds: dict[str, Any] = {"grid": GridConfig, "largest": LargestConfig}
    with pytest.raises(UserError, match=message):
        config(**{key: kinds[key](**value) if key in kinds else value for key, value in more.items()})


def test_a_folder_that_cannot_be_written_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "scale"):
        with pytest.raises(UserError, match=r"out=.*file is a file; give a folder with --out DIR"):
            scale(config(out=str(out)))
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match=r"holds other files \(data, file\) and no experiment; give a new folder"):
        scale(config(out=str(tmp_path)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "file"]


def test_trials_of_different_machines_are_told_apart(tmp_path: Path) -> None:
    run = read_config(RunConfig, [TINY], [])
    same, other = whole(), whole()
    other["rows"][1]["machine"] = "Another CPU, 8 CPUs, torch 2"
    assert not any("different machines" in note for note in notes(config(), run, same["rows"]))
    assert any("cannot be held against each other" in note for note in notes(config(), run, other["rows"]))
    gone = json.loads(json.dumps(other))
    gone["rows"][1]["status"] = "out of memory"  # only the launcher's guess is known of it, and it has no times
    assert not any("different machines" in note for note in notes(config(), run, gone["rows"]))
    assert "machine" not in scale_text(same).splitlines()[0] and "Another CPU" not in scale_text(same)
    assert "machine" in scale_text(other).splitlines()[0] and "Another CPU, 8 CPUs" in scale_text(other)
    page = write_scale_report(tmp_path, other).read_text()
    assert "Example CPU, 2 CPUs, torch 2; Another CPU, 8 CPUs, torch 2" in page  # what it ran on


def test_a_gpu_that_is_not_there_is_told_before_a_result_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.machine.available_gpus", lambda: 0)
    run = read_config(RunConfig, [TINY], ["--cluster.gpus_per_worker=1"])
    with pytest.raises(UserError, match=r"cluster\.gpus_per_worker=1, but nvidia-smi lists no GPU here; set it to 0"):
        check_limits(config(), [run])


def test_a_limit_beyond_the_machine_and_a_batch_that_cannot_be_shared_are_refused() -> None:
    run = read_config(RunConfig, [TINY], [])
    with pytest.raises(UserError, match=r"largest\.memory_gib=1e\+06 is more than the [\d.]+ GiB of this machine"):
        check_limits(config(largest=LargestConfig(memory_gib=1e6)), [run])
    with pytest.raises(UserError, match=r"judge\.batch=5 must be a multiple of 2 streams .*; try 4"):
        check_limits(config(judge=JudgeConfig(batch=5)), [run])


@pytest.mark.parametrize("split", ["val", "coco/val"])
def test_a_linked_split_can_be_judged_on(split: str, tmp_path: Path) -> None:
    write_split(Plain(), tmp_path / "shards", name="plain", fingerprint="f", layout=Layout(), workers=1)
    linked = tmp_path / "data" / split
    linked.parent.mkdir(parents=True)
    linked.symlink_to(tmp_path / "shards", target_is_directory=True)
    check_split(config(judge=JudgeConfig(split=split, batch=2)), tmp_path / "data")
    with pytest.raises(UserError, match=f"judge.split=test is not among the data's splits {split}; give one, or null"):
        check_split(config(judge=JudgeConfig(split="test")), tmp_path / "data")


def test_every_ready_experiment_reads_and_has_its_trials() -> None:
    found = [name for name in recipes() if name.startswith("configs/scale/")]
    assert {"configs/scale/albef_tiny.yaml", "configs/scale/clip_tiny.yaml"} <= set(found)
    for name in found:
        asked = read_config(ScaleConfig, [find_recipe(name)], [])
        wanted = trials(asked)
        settled, left_out = settle(asked, [find_recipe(base) for base in asked.base], [wanted[0], wanted[-1]])
        assert len(settled) == 2 and not left_out
        check_limits(asked, [each.run for each in settled])


# The largest batch.


def test_gains_are_held_against_the_bytes_kept() -> None:
    def entry(pruning: str, largest: int, saved: dict[str, float]) -> dict[str, Any]:
        slope = 900 / (largest + 0.5)
        found = search(straight(slope), Bounds(limit_bytes=1000, first=(2, 4)))
        return entry_of(pruning, found, saved, {batch: "too much" for batch in found.probes})

    off = entry("off", 40, {"visual_encoder": 8.0, "losses": 2.0})
    query = with_gain(entry("query", 48, {"visual_encoder": 6.0, "losses": 2.0}), off)
    assert (off["largest"], query["largest"], query["next_up"]) == (40, 48, 49)
    assert (query["gain"], query["predicted_gain"]) == (1.2, 1.25) and query["gain_share"] == pytest.approx(0.96)
    assert abs(query["prediction_error"]) < 0.05 and query["reason"] == "too much"
    both = {"limit_bytes": 1000, "workers": 1, "found": [with_gain(off, off), query]}
    assert largest_cells(both)[1][-3:] == ["1.200x", "1.250x", "0.960"]
    assert [line[0] for line in part_cells(both)] == ["part", "visual_encoder", "losses", "whole"]


def test_what_a_probe_cannot_be_made_of_is_refused_before_anything_starts() -> None:
    two = config(shared={"cluster.workers": 2}, largest=LargestConfig(memory_gib=1.0))
    with pytest.raises(
        UserError, match=r"largest: a micro-batch of 8 with pruning off: workers=2 do not go with engin"
    ):
        search_of(two, [TINY])


def test_without_a_limit_all_of_a_gpu_is_searched_and_nothing_of_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 24576; echo 16384\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    on_gpu = {"cluster.gpus_per_worker": 1}
    searched = search_of(config(shared=on_gpu), [TINY])
    assert searched is not None and searched.limit_bytes == 16 * GIB
    assert search_of(config(), [TINY]) is None
    run = read_config(RunConfig, [TINY], ["--cluster.gpus_per_worker=1"])
    with pytest.raises(UserError, match=r"largest\.memory_gib=20 is more than the 16\.0 GiB of this machine's GPU"):
        check_limits(config(shared=on_gpu, largest=LargestConfig(memory_gib=20.0)), [run])


def test_a_probe_that_is_too_slow_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    asked = config(limits=LimitConfig(seconds=0.01))
    with ProgressDisplay() as display:
        found = Prober(asked, [TINY], tmp_path, "", display, 1, GIB).compared()["found"]
    assert [entry["pruning"] for entry in found] == ["off", "query"]
    for entry in found:
        assert entry["fault"] == (
            "the bytes kept could not be counted: not done after 0.01 s; "
            "a micro-batch of 8 was too slow: not done after 0.01 s"
        )
        assert entry["largest"] is None and entry["predicted_gain"] is None
    data = {**whole(), "largest": {"limit_bytes": GIB, "workers": 1, "found": found}}
    assert "largest, query: not all found: the bytes kept" in scale_text(data)
    assert "a micro-batch of 8 was too slow" in write_scale_report(tmp_path, data).read_text()
    with pytest.raises(UserError, match="no largest batch was found: the bytes kept could not be counted"):
        refuse_nothing(asked, data)


def test_the_experiment_of_the_documentation_has_trials_and_probes() -> None:
    values = yaml.safe_load(fenced(ROOT / "docs" / "scaling.md", "yaml")[0])
    asked = parse(ScaleConfig, {"name": "docs", "out": "scale", **values})
    files = [find_recipe(base) for base in asked.base]
    wanted = trials(asked)
    some = [trial for trial in wanted if trial.global_batch == 64 and trial.pruning == "query" and trial.recompute]
    settled, left_out = settle(asked, files, [*some, wanted[-1]])
    assert len(settled) == 9 and not left_out  # two each of ZeRO, precision and workers, and the point
    check_limits(asked, [each.run for each in settled])
    assert search_of(asked, files) is not None


# What is made of the trials.


def test_a_loss_is_reached_on_the_line_between_two_looks() -> None:
    found = reached(evaluations(5.0, 4.0, 3.0), 3.5)
    assert found == {"step": 5.0, "samples": 160.0, "seconds": 12.5, "first_look": False}
    assert reached(evaluations(3.0, 4.0), 3.5) == {"step": 2, "samples": 64, "seconds": 5.0, "first_look": True}
    assert reached(evaluations(5.0, 4.0), 3.5) is None


def test_the_warm_up_counts_as_steps_like_the_others() -> None:
    seconds = [30.0, 1.0, 2.0, 3.0]
    assert [settled_seconds(seconds, done, 1) for done in (1, 2, 4)] == [2.0, 3.0, 8.0]
    assert settled_seconds(seconds, 4, 0) == 36.0


def test_the_goal_is_the_worst_end_where_none_is_given() -> None:
    rows = [row("a", fixed_loss=3.0), row("b", fixed_loss=4.0), row("c")]
    assert goal_of(None, rows) == 4.0 and goal_of(2.5, rows) == 2.5 and goal_of(None, [row("c")]) is None
    assert goal_of(None, [*rows, row("guess", fixed_loss=4.16, at_chance=True)]) == 4.0
    curves = {name: {"evaluations": evaluations(5.0, end)} for name, end in (("a", 3.0), ("b", 4.0))}
    told = with_goal(rows, curves, 4.0)
    assert [each["seconds_to_goal"] for each in told] == [7.5, 10.0, None]


def test_a_contrast_that_only_guesses_is_no_measure() -> None:
    assert at_chance({"loss": 4.15, "loss/itc": 4.15}, 64) and not at_chance({"loss": 4.0, "loss/itc": 4.0}, 64)
    assert not at_chance({"loss": 9.0, "loss/itc": 4.16, "loss/mlm": 4.84}, 64)  # another loss tells them apart


def test_the_recommendation_gives_its_reason() -> None:
    rows = [
        row("b32-off", goal=4.0, seconds_to_goal=50.0, critical_batch=81.3),
        row("b32-query", pruning="query", goal=4.0, seconds_to_goal=40.0, critical_batch=90.6),
        row("b64-query", pruning="query", goal=4.0, seconds_to_goal=41.0, status="too slow"),
    ]
    entry = {"pruning": "off", "largest": 40}
    largest = {"limit_bytes": GIB, "found": [entry, {"pruning": "query", "largest": 52}]}
    assert recommendation(rows, largest) == (
        "Train with a global batch of 32 in 2 parts of 16 a worker, a learning rate of 0.001, pruning query, fp32, for "
        "it reached a loss of 4 on the fixed batch in 40 s, 1.25 times as fast as b32-off; so far its critical batch "
        "is about 91 samples; within 1 GiB a micro-batch may have 52 samples with pruning query instead of 40."
    )
    at_first = recommendation([rows[0], {**rows[1], "goal_at_first_look": True}], None)
    assert (
        "for by its first look it reached a loss of 4 on the fixed batch in 40 s or less (look more often" in at_first
    )
    assert "times as fast" not in at_first  # for that it would have to be known
    rival = recommendation([{**rows[0], "goal_at_first_look": True}, rows[1]], None)
    assert "in 40 s, at most 1.25 times as fast as b32-off" in rival
    assert "10 samples a second (nothing was judged" in recommendation([row("b32-off")], None)
    guessing = [{**each, "at_chance": True} for each in rows]
    assert "no loss is better than guessing yet: give more samples" in recommendation(guessing, None)
    short = [row("a", goal=2.0, fixed_loss=3.5), row("b", goal=2.0, fixed_loss=3.0, global_batch=64)]
    guess = row("c", goal=2.0, fixed_loss=4.16, at_chance=True, samples_per_second=99.0)
    told = recommendation([*short, guess], None)
    assert "a global batch of 64" in told
    assert "for no trial reached a loss of 2 on the fixed batch, and its 3 is closest." in told
    assert "Nothing can be recommended" in recommendation([row("b32-off", status="failed")], None)


def test_an_experiment_of_which_nothing_came_says_so() -> None:
    data = whole()
    data["rows"] = [row("b32-off", status="too slow", reason="not done after 60 s")]
    with pytest.raises(
        UserError, match=r"none of 1 trials came to its end \(1 too slow\); b32-off: not done after 60 s"
    ):
        refuse_nothing(config(), data)
    data = whole()
    for entry in data["largest"]["found"]:
        entry["largest"], entry["reason"] = None, "0.5 GiB before the end of its first step"
    asked = config(largest=LargestConfig(memory_gib=0.25))
    data["largest"]["limit_bytes"] = GIB // 4
    with pytest.raises(UserError, match=r"largest\.memory_gib=0\.25: not even 8 samples fit \(0\.5 GiB before"):
        refuse_nothing(asked, data)
