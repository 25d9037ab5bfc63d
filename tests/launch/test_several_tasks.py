"""Several tasks on one pre-training: their stages, what they depend on, what is refused, and a whole run."""

import json
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError
from data_prep.files import read_json
from launch import preflight
from launch.cli import main
from launch.compare import CompareConfig, check_full_models, overrides_of, settled, trials
from launch.config import RunConfig, TaskConfig, TaskEvaluateConfig
from launch.graph import Attempt, Stage, fingerprints, read_status
from launch.job import WorkerDied
from launch.local_backend import LocalBackend
from launch.reading import below, dump_config, read_config
from launch.stages import build_stages
from launch.tasks import tasks_of, training_stages
from tests.launch.drawn import drawn_root

TINY = Path(__file__).with_name("tiny.yaml")
METER = {"backbone": "meter", "text.fusion_layers": 1, "fusion.width": 16, "fusion.heads": 2}


@cache
def config(*overrides: str) -> RunConfig:
    return read_config(RunConfig, [TINY], overrides)


def with_tasks(**trims: dict[str, Any]) -> RunConfig:
    """A run with further tasks, whose `trim` differs from its own in this."""
    own = config()
    return replace(own, tasks={name: TaskConfig(trim=replace(own.trim, **more)) for name, more in trims.items()})


def stages(run: RunConfig, out: Path, until: str | None = None) -> dict[str, Stage]:
    return {stage.name: stage for stage in build_stages(run, out, LocalBackend(0, 1), until)}


def digests(run: RunConfig, out: Path) -> dict[str, str]:
    return fingerprints(list(stages(run, out).values()))


def test_every_task_has_its_stages_and_its_own_teacher(tmp_path: Path) -> None:
    run = with_tasks(again={"init": "finetuned", "targets": (2.0, 1.0, 3.0)}, off={"targets": ()})
    found = stages(run, tmp_path)
    own, again = [f"trim-statement-{n}x" for n in ("1.0", "2.0")], [f"trim-again-{n}x" for n in ("1.0", "2.0", "3.0")]
    trims = [again[0], *own, *again[1:]]  # one that others wait for first
    evaluated = [f"evaluate-{name}" for name in ("pretrain", *trims)]
    assert list(found) == ["shard", "pretrain", *trims, *evaluated, "survivors", "survivors-again"]
    assert list(stages(run, tmp_path, until="trim")) == ["shard", "pretrain", *trims, *evaluated[1:]]
    inputs = {name: stage.inputs for name, stage in found.items()}
    assert inputs["trim-statement-2.0x"] == inputs["trim-again-1.0x"] == ("pretrain",)
    assert inputs["trim-again-2.0x"] == ("pretrain", "trim-again-1.0x")
    assert inputs["survivors-again"] == ("shard", "pretrain", *again)
    assert inputs["survivors"] == ("shard", "pretrain", *own)
    assert training_stages(run) == ["pretrain", *own, *again]


def test_full_models_that_others_wait_for_come_first(tmp_path: Path) -> None:
    first = {"init": "finetuned", "targets": (2.0, 1.0)}
    found = [name for name in stages(with_tasks(one=first, two=first), tmp_path) if name.startswith("trim-")]
    assert found[:2] == ["trim-one-1.0x", "trim-two-1.0x"], "else the time that is shared out would not do"
    assert sorted(found[2:]) == ["trim-one-2.0x", "trim-statement-1.0x", "trim-statement-2.0x", "trim-two-2.0x"]


def test_a_task_without_an_own_one_beside_it_may_have_its_name(tmp_path: Path) -> None:
    run = with_tasks(other={"method": "local"})
    run = replace(run, trim=replace(run.trim, targets=()), tasks={"statement": run.tasks["other"]})
    assert list(stages(run, tmp_path))[2:4] == ["trim-statement-1.0x", "trim-statement-local-2.0x"]


def test_a_further_task_leaves_the_fingerprints_of_all_other_stages(tmp_path: Path) -> None:
    before, after = digests(with_tasks(), tmp_path), digests(with_tasks(again={"trimmer_scale": 2.0}), tmp_path)
    assert {name: after[name] for name in before} == before
    assert all("again" in name for name in after.keys() - before.keys())
    changed = digests(with_tasks(third={}, again={"trimmer_scale": 3.0}), tmp_path)
    assert {name for name in after if changed[name] == after[name]} >= set(before) | {"trim-again-1.0x"}
    assert changed["evaluate-trim-again-2.0x"] != after["evaluate-trim-again-2.0x"]  # of a model that is another one


def test_questions_of_all_tasks_count_for_a_vocabulary_that_is_trained(tmp_path: Path) -> None:
    def shard(run: RunConfig) -> str:
        return digests(run, tmp_path)["shard"]

    asks, others = {"task": "vqa"}, {"task": "vqa", "splits": {"test": 1.0}}
    asked = shard(with_tasks(q=asks))
    assert asked != shard(with_tasks())
    given = replace(with_tasks(q=asks), tokenizer=replace(config().tokenizer, path="words"))
    assert shard(given) == shard(replace(given, tasks={}))
    left = {name: replace(task, vocabulary=False) for name, task in with_tasks(q=asks).tasks.items()}
    assert shard(replace(with_tasks(), tasks=left)) == shard(with_tasks())
    own = replace(config(), trim=with_tasks(q=asks).tasks["q"].trim)
    assert shard(replace(own, tasks=with_tasks(q=asks).tasks)) == shard(own)  # its splits were asked already
    assert shard(with_tasks(q=asks, p=others)) == shard(with_tasks(p=others, q=asks)) != asked
    assert shard(with_tasks(q={"task": "vqa_generative"})) != asked


class _Noting(LocalBackend):
    """Notes the jobs whose processes it is to start."""

    def __init__(self, slots: int) -> None:
        super().__init__(0, 1)
        self.slots = slots
        self.jobs: dict[str, dict[str, Any]] = {}

    def launch(self, job: Any, workers: int) -> BaseException | None:
        self.jobs[job["stage"]] = dict(job)
        return None


class _Refusing(_Noting):
    """A launcher whose workers refuse what they find."""

    def launch(self, job: Any, workers: int) -> BaseException | None:
        raise UserError("trim.answers.at_least=9 is too much")


def test_what_a_worker_refuses_is_told_with_the_tasks_key(tmp_path: Path) -> None:
    stage = {each.name: each for each in build_stages(with_tasks(q={}), tmp_path, _Refusing(1), "trim")}["trim-q-1.0x"]
    stage.folder.mkdir(parents=True)
    with pytest.raises(UserError, match=r"^tasks\.q\.trim\.answers\.at_least=9 is too much$"):
        stage.run(Attempt(folder=stage.folder, resumed=False))


@pytest.mark.parametrize(
    ("trims", "slots", "rounds"),
    [
        ({}, 1, 2),
        ({}, 2, 1),
        ({"again": {}}, 1, 4),
        ({"again": {}}, 2, 2),
        ({"again": {"init": "finetuned", "targets": (1.0, 2.0, 3.0)}}, 2, 3),
    ],
)
def test_the_budget_is_shared_out_over_all_fine_tunings(
    trims: dict[str, dict[str, Any]], slots: int, rounds: int, tmp_path: Path
) -> None:
    trims = {name: {"trimmer_scale": 3.0, **trim} for name, trim in trims.items()}
    run, backend = with_tasks(**trims), _Noting(slots)
    run = replace(run, budget=replace(run.budget, minutes=10, pretrain_share=0.4))
    run = replace(run, cluster=replace(run.cluster, restarts=0))
    for stage in build_stages(run, tmp_path, backend, "trim"):
        if not stage.name.startswith(("pretrain", "trim-")):
            continue
        stage.folder.mkdir(parents=True)
        with pytest.raises(WorkerDied):  # there is no result
            stage.run(Attempt(folder=stage.folder, resumed=False))
    seconds = {name: job["budget_seconds"] for name, job in backend.jobs.items()}
    assert seconds.pop("pretrain") == pytest.approx(240)
    assert list(seconds.values()) == pytest.approx([360 / rounds] * len(seconds))
    told = {name.split("-")[1]: job["run"]["trim"] for name, job in backend.jobs.items() if name != "pretrain"}
    assert {name: trim["trimmer_scale"] for name, trim in told.items()} == {
        task.title: task.config.trim.trimmer_scale for task in tasks_of(run)
    }


def test_a_run_with_tasks_is_kept_as_it_was_read(tmp_path: Path) -> None:
    words = ["trim.loop.samples=16", "trim.loop.global_batch=8", "trim.targets=[1.0, 35 ms]"]
    read = config(*(f"--tasks.again.{word}" for word in words), "--tasks.again.evaluate.statement_splits=[train]")
    assert read.tasks["again"].trim.targets == (1.0, "35 ms")
    assert read.tasks["again"].evaluate == TaskEvaluateConfig(statement_splits=("train",))
    (tmp_path / "config.yaml").write_text(dump_config(read))
    assert read_config(RunConfig, [tmp_path / "config.yaml"], []) == read
    stored = dump_config(config()).replace("tasks: {}\n", "")
    (tmp_path / "config.yaml").write_text(stored)  # of a run from before there were tasks
    assert "tasks" not in stored and read_config(RunConfig, [tmp_path / "config.yaml"], []) == config()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("statement", "tasks.statement: the stages of the run's own trim.task are called so already"),
        ("retrieval", "tasks.retrieval: pre-training's results are called so already; give another name"),
        ("a-b", "tasks.a-b: a name is a word of small letters"),
    ],
)
def test_a_name_that_others_have_is_refused(name: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        with_tasks(**{name: {}})
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trim.loop.samples=0"], "tasks.q.trim.loop.samples=0 must be at least 1"),
        (["trim.loop.samples=8", "trim.targets=[2, 2x]"], "tasks.q.trim.targets=[2.0, '2x'] must be different"),
        (["trim.task=vqa"], "tasks.q.trim.loop.samples is missing; give it with --tasks.q.trim.loop.samples"),
    ],
)
def test_what_is_no_task_is_refused_with_its_whole_key(words: list[str], told: str) -> None:
    with pytest.raises(UserError) as caught:
        config(*(f"--tasks.q.{word}" for word in ["trim.loop.global_batch=8", *words]))
    assert str(caught.value).startswith(told)


def test_what_is_said_of_the_pretrained_model_is_not_a_tasks() -> None:
    with pytest.raises(UserError, match=r"^evaluate.retrieval_splits=\['test'\] is not a further task's"):
        TaskEvaluateConfig(retrieval_splits=("test",))


@pytest.mark.parametrize(
    ("trim", "evaluate", "told"),
    [
        ({"task": "vqa"}, {}, "tasks.q.trim.task=vqa wants questions with annotators' answers, which 'train' of data"),
        ({"lr_scales": {"vision": 2.0}}, {}, "tasks.q.trim.lr_scales names 'vision'"),
        ({"splits": {"unseen": 1.0}}, {}, "tasks.q.trim.splits names the split 'unseen'"),
        ({}, {"statement_splits": ()}, "tasks.q.evaluate.statement_splits is empty, but tasks.q.trim.targets=[1.0, 2"),
        ({}, {"picture_split": "unseen"}, "tasks.q.evaluate.picture_split names the split 'unseen'"),
    ],
)
def test_every_task_is_checked_before_anything_runs(
    trim: dict[str, Any], evaluate: dict[str, Any], told: str, tmp_path: Path
) -> None:
    run = with_tasks(q=trim)
    task = replace(run.tasks["q"], evaluate=TaskEvaluateConfig(**evaluate))
    with pytest.raises(UserError) as caught:
        preflight.check(replace(run, tasks={"q": task}), tmp_path / "run")
    assert str(caught.value).startswith(told)


def test_a_remedy_is_told_with_the_tasks_key(tmp_path: Path) -> None:
    run = with_tasks(q={"loop": replace(config().trim.loop, global_batch=7)})
    with pytest.raises(UserError) as caught:
        preflight.check(run, tmp_path / "run")
    assert str(caught.value).startswith("tasks.q.trim.loop.global_batch=7 ")
    assert "--tasks.q.trim.loop.global_batch 8" in str(caught.value)
    assert below("tasks.q", TaskConfig, "a target of 9x is too high") == "tasks.q: a target of 9x is too high"
    preflight.check(with_tasks(q={}), tmp_path / "run")


def test_every_model_of_every_task_needs_space() -> None:
    run = with_tasks(q={})
    assert preflight.needed_bytes(run) == preflight.needed_bytes(
        replace(run, tasks={}, trim=replace(run.trim, targets=(1.0, 2.0, 3.0, 4.0)))
    )


def test_tasks_of_a_comparison_end_with_their_time_and_count_from_one_full_model(tmp_path: Path) -> None:
    shared = {f"tasks.q.trim.loop.{key}": 8 for key in ("samples", "global_batch")}
    asked = CompareConfig(
        out="cmp", base=(str(TINY),), shared=shared, reference="a", variants={"a": {}}, budgets=("minutes",), seeds=(0,)
    )
    (trial,) = trials(asked)
    assert settled([TINY], overrides_of(asked, trial), trial)[-1] == "--tasks.q.trim.loop.samples=1000000000"
    plain = replace(with_tasks(q={}), model=config(*(f"--model.{key}={value}" for key, value in METER.items())).model)
    other = replace(plain, tasks={"q": replace(plain.tasks["q"], trim=replace(plain.trim, method="evit"))})
    with pytest.raises(UserError, match=r"speed-ups of plain .*set tasks\.q\.trim\.keep_pruning=false"):
        check_full_models({"plain": plain, "other": other}, tmp_path)
    check_full_models({"plain": plain}, tmp_path)


def run(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    assert main([*words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_tasks_go_through_a_whole_run_are_added_to_it_and_fail_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, root = tmp_path / "run", drawn_root(partial(run, capsys), tmp_path, "vqa", ("train=60", "val=10"))
    words = ["run", str(TINY), "configs/tasks/several.yaml", "--data.root", str(root), "--out", str(out)]
    words += ["--trim.targets=[1.0]", "--tasks.vqa.trim.answers.at_least=5", "--tasks.vqa.trim.targets=[1.0]"]
    words += ["--tasks.vqa.trim.loop.samples=16", "--tasks.vqa.trim.loop.global_batch=8"]
    done = run(capsys, *words)
    assert set(done["stages"].values()) == {"done"}
    named = {(row["stage"], row["task"], row.get("name")) for row in done["results"]}
    assert named == {("pretrain", "retrieval", None), ("trim-statement-1.0x", "statement", None),
                     ("trim-vqa-1.0x", "vqa", "vqa")}  # fmt: skip
    vocabulary = read_json(out / "tokenizer" / "tokenizer.json")["model"]["vocab"]
    assert "how" in vocabulary  # of the questions of a further task
    drawn = {path.stem.split("-")[1] for path in (out / "figures").glob("cost-*.csv")}
    assert drawn == {"statement", "vqa"}

    # No text of the loader's length is known to be too short for 8.5x before the data's own are seen.
    more = ['trim.splits={"shapes/train": 1.0}', "trim.targets=[1.0, 8.5]", "evaluate.statement_splits=[shapes/test]"]
    more += ["trim.loop.samples=16", "trim.loop.global_batch=8"]
    added = run(capsys, *words, *(f"--tasks.again.{word}" for word in more), code=2)
    assert list(added["failures"]) == ["trim-again-8.5x"]
    assert {name: outcome for name, outcome in added["stages"].items() if "again" not in name} == dict.fromkeys(
        done["stages"], "skipped"
    )
    assert {name: outcome for name, outcome in added["stages"].items() if "again" in name} == {
        "trim-again-1.0x": "done", "trim-again-8.5x": "failed", "evaluate-trim-again-1.0x": "done",
        "evaluate-trim-again-8.5x": "blocked", "survivors-again": "blocked",
    }  # fmt: skip
    rows = read_json(out / "results.json")
    own = [row["value"] for row in rows if row["stage"] == "trim-statement-1.0x" and row["metric"] == "accuracy"]
    again = [row for row in rows if row.get("name") == "again"]
    assert len(own) == 1 and {row["task"] for row in again} == {"statement"}
    page = (out / "report.html").read_text()
    assert all(f"<h3>{name}</h3>" in page for name in ("statement", "vqa", "again"))
    assert read_status(out / "stages/trim-again-8.5x")["state"] == "failed"
    assert main(["analyse", "trimming", str(out), "--task", "vqa", "--samples", "8"]) == 0
    assert "8 vqa instances" in capsys.readouterr().out
    assert main(["analyse", "trimming", str(out), "--task", "vqq"]) == 2
    assert "is fine-tuned for statement, vqa, again" in capsys.readouterr().err
