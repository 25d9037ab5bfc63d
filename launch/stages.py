"""The stages of a run, made from its configuration: shard -> pretrain -> trim -> evaluate -> survivors.

Where a pre-trained model is given (`launch.given`), the second is not there, and the others begin from that model.
"""

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.exclusion import read_exclusions
from data_prep.files import write_json
from data_prep.sources import PlannedSplit, SourceConfig, prepare, source_module, writing_identity
from data_prep.targets import LocalTarget, open_target
from launch.backend import Backend, Care
from launch.config import RunConfig, TaskConfig
from launch.given import weights_digest
from launch.graph import Attempt, Stage
from launch.reading import as_json, below
from launch.split_texts import check_texts
from launch.stage_parts import parts_of, ranking_rules, rules_of
from launch.tasks import Task, tasks_of
from launch.vocabulary import given_tokenizer, make_tokenizer
from pipeline.checkpoint_places import newest_step
from pipeline.exports import AS_WRITTEN
from pipeline.metrics.captions import missing_for_captions
from pipeline.pretrain import check_pretrain, describe_pretrain_update
from pipeline.progress import ProgressFile
from pipeline.tasks.classes import ANSWERING
from pipeline.trim_config import TrimConfig
from pipeline.trimming.methods import what_counts
from pipeline.trimming.target import Target

KINDS = ("pretrain", "trim", "evaluate")
"""What a run can end with, in their order."""

RESULTS = "results.json"


def plan_source(config: SourceConfig) -> Mapping[str, PlannedSplit]:
    """The splits that a source will write.

    Raises:
        UserError: where its raw files are missing, or a list of exclusions.
    """
    read_exclusions(config.clean.exclude)
    plan: Mapping[str, PlannedSplit] = source_module(config.name).plan(config)
    return plan


def build_stages(
    config: RunConfig,
    out: Path,
    backend: Backend,
    until: str | None = None,
    group: str = "",
    lease: str | None = None,
) -> list[Stage]:
    """All stages of a run, inputs before their users.

    Args:
        config: The run's configuration.
        out: The run folder.
        backend: Starts the workers of all stages but the first.
        until: The last kind of stage wanted, of `KINDS`; None for all. The models of `trim` are evaluated.
        group: What the run's stages have in common in wandb, where the configuration does not say.
        lease: Session of the run, by which training knows whether the place of its checkpoints is still its own.
    """
    return _Builder(config, out, backend, group, lease).build(until)


def shard_stage(config: RunConfig, out: Path, backend: Backend) -> Stage:
    """The stage alone that writes a run's shards and makes its tokenizer; arguments as of `build_stages`."""
    return _Builder(config, out, backend, "", None).shard()


def pretrain_counts(config: RunConfig) -> list[int]:
    """The numbers of workers that pre-training may have: of those asked for, the ones that the batch divides among.

    With the local launcher there are as many as torchrun has started, whatever is asked for. Where nothing is
    pre-trained the number is fine-tuning's.

    Raises:
        UserError: None does.
    """
    counts, refusal = [], None
    here = [int(os.environ.get("WORLD_SIZE", "1"))] if config.launcher == "local" else None
    if config.pretrained is not None:
        return here or [1]
    for count in here or config.cluster.counts:
        try:
            check_pretrain(config.pretrain, config.model, config.loader, config.engine, count)
        except UserError as error:
            refusal = error
        else:
            counts.append(count)
    if refusal is not None and not counts:
        raise refusal
    return counts


def _distinct(*names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


class _Builder:
    def __init__(self, config: RunConfig, out: Path, backend: Backend, group: str, lease: str | None) -> None:
        self._config = config
        self._tasks = tasks_of(config)
        self._out = out
        self._backend = backend
        self._run = as_json(self._tasks[0].config)
        checkpoints = config.checkpoint.path and open_target(config.checkpoint.path)
        if isinstance(checkpoints, LocalTarget):
            # Workers have working directories of their own.
            self._run["checkpoint"]["path"] = str(checkpoints.folder.absolute())
        self._group = group
        self._lease = lease
        self._until: str | None = "pretrain"
        self._given = None if config.pretrained is None else Path(config.pretrained)
        self._backbone = self._given or self._export("pretrain")
        # What a stage that uses the pre-trained model depends on: a stage of the run, or the bytes of what is given.
        self._before = ("pretrain",) if self._given is None else ("shard",)
        self._of_given = {} if self._given is None else {"pretrained": weights_digest(self._given)}

    def build(self, until: str | None) -> list[Stage]:
        self._until = until
        wanted = KINDS[: KINDS.index(until) + 1] if until else KINDS
        stages = [self.shard(), *([] if self._given else [self._pretrain()])]
        wanted_models = [(task, target) for task in self._tasks for target in task.targets]
        wanted_models.sort(key=lambda each: not each[0].teaches(each[1]))  # as `_trim_seconds` shares time out
        trims = [(task, self._trim(task, target)) for task, target in wanted_models]
        if "trim" in wanted:
            stages += [stage for _, stage in trims]
        if "evaluate" in wanted:
            stages.append(self._evaluate(self._tasks[0], "pretrain"))
        if "trim" in wanted:  # accuracy against cost is what targets are trained for
            stages += [self._evaluate(task, stage.name) for task, stage in trims]
        if "evaluate" in wanted:
            stages += [self._survivors(task) for task in self._tasks]
        return stages

    def _folder(self, name: str) -> Path:
        return self._out / "stages" / name

    def _export(self, name: str) -> Path:
        return self._folder(name) / "export"

    def shard(self) -> Stage:
        plan = {name: dict(split.identity) for name, split in plan_source(self._config.data).items()}
        data = {"name": self._config.data.name, **writing_identity(self._config.data), "splits": plan}
        splits = tuple(self._out / "data" / name / "index.json" for name in plan)
        return Stage(
            name="shard",
            folder=self._folder("shard"),
            run=self._write_shards,
            parts={
                "data": data,
                **self._parts_of_words(),
                **({"questions": list(self._asked)} if self._asked else {}),
                **({"answers": AS_WRITTEN} if self._tells else {}),
            },
            outputs=(*splits, self._out / "tokenizer"),
        )

    def _parts_of_words(self) -> dict[str, Any]:
        """What the tokenizer depends on; of a given model's on its words, wherever they lie."""
        if self._given is None:
            return {"tokenizer": self._config.tokenizer.identity, "splits": self._config.pretrain.splits}
        return {"tokenizer": given_tokenizer(self._config.tokenizer).digest}

    @property
    def _asking(self) -> list[TrimConfig]:
        """Those whose questions count for the vocabulary: of further tasks only where it is not given, but trained."""
        given = self._config.tokenizer.path is not None
        trims = [task.config.trim for task in self._tasks if task.name is None or (task.vocabulary and not given)]
        return [trim for trim in trims if trim.task in ANSWERING and trim.targets]

    @property
    def _asked(self) -> tuple[str, ...]:
        """Splits whose questions are answered; their words are told by no caption."""
        asked = {split for trim in self._asking for split in trim.splits}
        own = [split for split in self._config.trim.splits if split in asked]
        return (*own, *sorted(asked - set(own)))  # in whatever order tasks are named

    @property
    def _tells(self) -> bool:
        """Whether answers are told word by word."""
        return any(trim.task == "vqa_generative" for trim in self._asking)

    def _write_shards(self, attempt: Attempt) -> Mapping[str, Any]:
        data = self._out / "data"
        if not attempt.resumed:
            # Splits that the source no longer has may not stay; those that did not change are kept.
            self._remove_other_splits(data)
            shutil.rmtree(self._out / "tokenizer", ignore_errors=True)
        progress = ProgressFile(attempt.folder / "progress.json", 1.0, "samples")

        def show(done: int, total: int) -> None:
            progress.total = max(1, total)
            progress.show(done, "writing shards")

        account = prepare(self._config.data, data, show, replace_others=True)
        check_texts(self._config, lambda split: data / split, self._until)
        progress.show(progress.total, "making the tokenizer", now=True)
        told, asked = ([data / name for name in names] for names in (self._config.pretrain.splits, self._asked))
        tokenizer = make_tokenizer(self._config.tokenizer, told, asked, self._config.loader, self._tells)
        tokenizer.save(self._out / "tokenizer")
        words = {"tokenizer": str(self._out / "tokenizer"), "vocabulary": tokenizer.vocab_size}
        return {"data": str(data), **words, **account}

    def _remove_other_splits(self, data: Path) -> None:
        wanted = {data / name for name in plan_source(self._config.data)}
        around = {folder.parent for folder in wanted}  # data sets of a mix have their splits in folders of their own
        for folder in [*data.glob("*"), *(path for parent in around - {data} for path in parent.glob("*"))]:
            if folder in wanted or (folder in around and not folder.is_symlink()):
                continue
            if folder.is_symlink() or folder.is_file():
                folder.unlink(missing_ok=True)
            else:
                shutil.rmtree(folder, ignore_errors=not folder.exists())

    def _pretrain(self) -> Stage:
        seconds = self._pretrain_seconds()
        counts = pretrain_counts(self._config)
        job = self._job("pretrain", "pretrain", self._run, budget_seconds=seconds, can_leave=True)
        return Stage(
            name="pretrain",
            folder=self._folder("pretrain"),
            run=lambda attempt: self._carry_out(job, counts, attempt),
            inputs=("shard",),
            parts={**parts_of(self._run, "loader", "model", "engine", "pretrain"), "budget": self._budget()},
            outputs=(self._export("pretrain"),),
            cpus=counts[-1] * self._config.cluster.cpus_per_worker,
            checkpoints=self._config.checkpoint.place_of(self._folder("pretrain")),
            says=self._update_in_words(counts[-1]),
        )

    def _update_in_words(self, workers: int) -> str:
        config = self._config
        engine = config.engine.resolved("pretrain", config.pretrain.loop.global_batch, workers, least=2)
        return describe_pretrain_update(config.pretrain, config.model, engine, workers)

    def _run_of(self, task: Task) -> dict[str, Any]:
        """The run's configuration as a worker is given it that works for one task."""
        return {**self._run, "trim": as_json(task.config.trim), "evaluate": as_json(task.config.evaluate)}

    def _trim(self, task: Task, target: float | str) -> Stage:
        config, run = task.config, self._run_of(task)
        name, wanted = task.trim_name(target), Target.parse(target)
        teacher = task.trim_name(1.0) if config.trim.needs_full and not wanted.is_full else None
        job = self._job(
            name,
            "trim",
            run,
            target=wanted.plain,
            backbone=str(self._backbone),
            teacher=None if teacher is None else str(self._export(teacher)),
            budget_seconds=self._trim_seconds(),
            can_leave=True,
            task=task.name,
        )
        counting = {**run, "trim": what_counts(run["trim"], wanted)}
        parts = {**parts_of(counting, "loader", "engine", "trim"), "target": wanted.plain, "budget": self._budget()}
        kept = config.trim.kept_pruning(config.model.backbone, config.pretrain.pruning)
        if kept is not None:
            parts["pruning"] = as_json(kept)
        parts |= rules_of(config.trim.task, config.trim.method, not wanted.is_full)
        ranks = config.trim.task == "retrieval" and config.trim.validation.every_steps > 0
        parts |= ranking_rules(config.model.backbone, ranks)
        inputs = self._before if teacher is None else (*self._before, teacher)
        return self._single(name, job, inputs, parts | self._of_given, (self._export(name),))

    def _evaluate(self, task: Task, of: str) -> Stage:
        name, run = f"evaluate-{of}", self._run_of(task)
        job = self._job(name, "evaluate", run, **self._models([of]), task=task.name)
        before, parts = (of,), parts_of(run, "loader", "evaluate")
        if of == "pretrain":
            before, parts = self._before, parts | self._of_given
        ranks = (
            bool(task.config.evaluate.retrieval_splits) if of == "pretrain" else task.config.trim.task == "retrieval"
        )
        parts |= ranking_rules(task.config.model.backbone, ranks)
        if of != "pretrain" and task.config.trim.task == "captioning" and missing_for_captions():
            parts["unscored"] = True  # it is done again where the programs that score are there
        inputs = _distinct("shard", *before)
        return self._single(name, job, inputs, parts, (self._folder(name) / RESULTS,))

    def _survivors(self, task: Task) -> Stage:
        """The pictures of one task: a model that failed leaves those of other tasks alone, which ask other things."""
        name, run = task.survivors, self._run_of(task)
        job = self._job(name, "survivors", run, **self._models(["pretrain", *task.trims]))
        inputs = _distinct("shard", *self._before, *task.trims)
        parts = parts_of(run, "loader", "evaluate", "pretrain") | self._of_given
        if self._given is not None:
            parts["pretrain"] = {"pruning": parts["pretrain"]["pruning"]}  # no more of it takes place
        return self._single(name, job, inputs, parts, (self._folder(name) / "survivors.json",))

    def _models(self, names: list[str]) -> dict[str, Any]:
        trimmed = {name: str(self._export(name)) for name in names if name != "pretrain"}
        return {"pretrained": str(self._backbone) if "pretrain" in names else None, "trimmed": trimmed}

    def _job(self, name: str, kind: str, run: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {
            "stage": name,
            "kind": kind,
            "folder": str(self._folder(name)),
            "data": str(self._out / "data"),
            "tokenizer": str(self._out / "tokenizer"),
            "run": run,
            "group": self._group,
            "lease": self._lease,
            "silent_seconds": self._config.cluster.silent_seconds,
            "stall_seconds": self._config.cluster.stall_seconds,
            "threads": max(1, int(self._config.cluster.cpus_per_worker)),
            **more,
        }

    def _single(
        self,
        name: str,
        job: dict[str, Any],
        inputs: tuple[str, ...],
        parts: dict[str, Any],
        outputs: tuple[Path, ...],
    ) -> Stage:
        """A stage of one worker."""
        folder = self._folder(name)
        return Stage(
            name=name,
            folder=folder,
            run=lambda attempt: self._carry_out(job, (1,), attempt),
            inputs=inputs,
            parts=parts,
            outputs=outputs,
            cpus=self._config.cluster.cpus_per_worker,
            checkpoints=self._config.checkpoint.place_of(folder) if job["kind"] == "trim" else None,
        )

    def _carry_out(self, job: dict[str, Any], counts: Sequence[int], attempt: Attempt) -> Mapping[str, Any]:
        job = {**job, "fingerprint": attempt.fingerprint}
        care = Care(
            restarts=self._config.cluster.restarts,
            silent_seconds=self._config.cluster.silent_seconds,
            newest_step=lambda: newest_step(self._config.checkpoint.place_of(attempt.folder)),
            on_restart=attempt.note_restart,
        )
        result = self._run_job(job, counts, care)
        if "rows" in result:
            named = {"name": job["task"]} if job.get("task") else {}  # a row tells the run's own by its `task`
            write_json(attempt.folder / RESULTS, [row | named for row in result["rows"]])
            return {"results": str(attempt.folder / RESULTS)}
        return result

    def _run_job(self, job: dict[str, Any], counts: Sequence[int], care: Care) -> Mapping[str, Any]:
        """A worker knows a further task by `trim` and `evaluate`: what it refuses is told by the whole key."""
        try:
            return self._backend.run(job, counts, care)
        except UserError as error:
            if type(error) is not UserError or not job.get("task"):
                raise
            raise UserError(below(f"tasks.{job['task']}", TaskConfig, str(error))) from error

    def _budget(self) -> dict[str, Any]:
        return dict(self._run["budget"])

    def _pretrain_seconds(self) -> float | None:
        budget = self._config.budget
        if budget.minutes is None:
            return None
        trims = any(task.targets for task in self._tasks)
        return 60 * budget.minutes * (budget.pretrain_share if trims else 1.0)

    def _trim_seconds(self) -> float | None:
        """Each trim stage's part of the time that pre-training leaves, by how many must run one after the other."""
        budget, slots = self._config.budget, max(1, self._backend.slots)
        if budget.minutes is None:
            return None
        trims = [task.config.trim for task in self._tasks]
        first = sum(trim.needs_full and len(trim.targets) > 1 for trim in trims)  # full models that others wait for
        others = sum(len(trim.targets) for trim in trims) - first
        rounds = math.ceil(first / slots) + math.ceil(others / slots)
        share = 1.0 if self._given else 1 - budget.pretrain_share
        return 60 * budget.minutes * share / rounds
