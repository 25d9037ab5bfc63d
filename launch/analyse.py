"""`trimline analyse WHAT RUN ...`: analyses of trained models, from their run folders."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from data_prep.errors import UserError
from data_prep.index import INDEX
from launch.answers import Answer
from launch.config import RunConfig
from launch.leak_table import leak_text, means_of
from launch.reading import read_config
from pipeline.data.batch import ImageTextBatch
from pipeline.data.text import Tokenizer
from pipeline.evaluation.config import loader_of
from pipeline.exports import load_backbone
from pipeline.measure.leak import Probe, measure_leak
from pipeline.objectives.mlm import Vocabulary
from pipeline.setup import Inputs

BATCH = 64


@dataclass(frozen=True)
class _Trained:
    """A run folder and the split that its model is looked at with."""

    folder: Path
    config: RunConfig
    split: str

    @property
    def setting(self) -> dict[str, Any]:
        """What runs of different seeds have in common."""
        pruning = self.config.pretrain.pruning
        momentum = {"prune_momentum": pruning.prune_momentum}
        return {"backbone": self.config.model.backbone, **asdict(pruning.elip), **momentum}

    @property
    def held_out(self) -> bool:
        """Whether pre-training has not seen the split; a folder from elsewhere is taken to be new to it."""
        return self.split not in self.config.pretrain.splits


def leak_command(folders: Sequence[Path], split: str | None, samples: int) -> Answer:
    """`trimline analyse leak RUN ...`.

    Args:
        folders: Of runs that got as far as pre-training.
        split: Name of a split of theirs, or a folder of indexed shards; None for the first that the first run
            evaluates.
        samples: Pairs to look at in each.

    Raises:
        UserError: A folder holds no pre-trained model, or one that text-guided pruning has no part in.
    """
    if samples < 2:
        raise UserError(f"--samples {samples} must be at least 2")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("a run folder is named twice; its numbers would count twice")
    runs: list[_Trained] = []
    for folder in folders:
        # One split for all: what is averaged must have been asked of the same pictures.
        runs.append(_trained(folder, split or (runs[0].split if runs else None)))
    labels = _labels(runs)
    rows = []
    for run, label in zip(runs, labels, strict=True):
        told = {"run": str(run.folder), "setting": label, "seed": run.config.seed, "held_out": run.held_out}
        rows += [{**told, **row} for row in _leak(run, samples)]
    means = means_of(rows)
    return 0, {"split": runs[0].split, "rows": rows, "means": means}, leak_text(runs[0].split, rows, means)


def _trained(folder: Path, split: str | None) -> _Trained:
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is no run folder: it has no config.yaml; give the `out` of a `trimline run`")
    config = read_config(RunConfig, [folder / "config.yaml"], [])
    if not (folder / "stages" / "pretrain" / "export").is_dir():
        raise UserError(f"{folder} has no pre-trained model yet; let its pre-training end (trimline status {folder})")
    if config.pretrain.pruning.chosen is not config.pretrain.pruning.elip:
        raise UserError(f"{folder} was pre-trained without text-guided pruning: nothing can leak there; leave it out")
    chosen = split or next(iter(config.evaluate.retrieval_splits or config.evaluate.statement_splits), "val")
    data = folder / "data"
    if (data / chosen / INDEX).is_file():
        return _Trained(folder, config, chosen)
    if (Path(chosen) / INDEX).is_file():
        return _Trained(folder, config, str(Path(chosen).resolve()))
    known = ", ".join(sorted(path.parent.name for path in data.glob(f"*/{INDEX}"))) or "none"
    raise UserError(f"{folder} has no split {chosen!r}, nor is that a folder of indexed shards; it has {known}")


def _labels(runs: Sequence[_Trained]) -> list[str]:
    """What each run is called: its backbone and guidance, and whatever else is not the same in all of them."""
    settings = [run.setting for run in runs]
    varied = [key for key in settings[0] if any(setting.get(key) != settings[0][key] for setting in settings)]
    extra = [key for key in varied if key not in ("backbone", "guidance")]
    return [" ".join([s["backbone"], s["guidance"], *(f"{key}={_short(s[key])}" for key in extra)]) for s in settings]


def _short(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _leak(run: _Trained, samples: int) -> list[dict[str, Any]]:
    config = run.config
    inputs = Inputs(
        data=run.folder / "data",
        tokenizer=run.folder / "tokenizer",
        loader=config.loader,
        engine=config.engine,
        seed=config.seed,
    )
    tokenizer = inputs.load_tokenizer()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    probe = Probe(
        model=load_backbone(run.folder / "stages" / "pretrain" / "export").to(device),
        pruning=config.pretrain.pruning,
        words=Vocabulary(mask=tokenizer.mask_id, size=tokenizer.vocab_size),
        mask_share=config.pretrain.objectives.mask_share,
        normalise=inputs.normalise,
    )
    return measure_leak(probe, _batches(inputs, run.split, tokenizer, samples, device))


def _batches(inputs: Inputs, split: str, tokenizer: Tokenizer, samples: int, device: str) -> Iterator[ImageTextBatch]:
    for batch in loader_of(inputs, split, "captions", BATCH, tokenizer, samples):
        yield batch.to(device)
