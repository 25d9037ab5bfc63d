"""A pre-trained model that is given: a run whose `pretrained` names a folder fine-tunes that, with no pre-training."""

import functools
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from data_prep.errors import UserError
from data_prep.files import read_described, sha256_file
from launch.config import RunConfig
from launch.reading import load_yaml, read_config
from launch.stage_parts import flat
from launch.tasks import tasks_of
from launch.vocabulary import given_tokenizer
from pipeline.data.loader import LoaderConfig
from pipeline.data.text import has_tokenizer
from pipeline.evaluation.export_input import loader_of
from pipeline.exports import BEGINNINGS, load_backbone
from pipeline.handoff import check_fits
from pipeline.models.config import ModelConfig
from pipeline.pretrain import check_guidance
from pipeline.setup import check_sizes
from pipeline.tasks.classes import TASKS
from pipeline.weights.albef import WORD_HEAD
from pipeline.weights.loaded import lacks_matching
from pipeline.weights.usual_texts import usual_texts

log = logging.getLogger(__name__)

_KEY = "pretrained"
_FILES = ("model.safetensors", "config.json")
_PREPARED = ("resize", "crop", "mean", "std")
_DECODING = ("captioning", "vqa_generative")
_MATCHING = ("statement", "retrieval")
"""Tasks that begin with matching's head."""
_SHOWN = 4
SAID = ("model", "loader", "tokenizer", "pretrain.pruning")
"""What the folder says where no override does."""
_UNUSED = {"pretrain.loop.samples": 1, "pretrain.loop.global_batch": 1, "pretrain.pruning.method": "none"}
"""Of a pre-training that does not take place nobody need say how long it lasts; a file may say how the model was pruned
in its own, for `trim.keep_pruning`."""


@dataclass(frozen=True)
class Given:
    """The folder of a pre-trained model.

    Attributes:
        folder: As `trimline pretrain` exported it or `trimline import` wrote it.
        described: Its config.json.
        model: The sizes in that.
    """

    folder: Path
    described: Mapping[str, Any]
    model: ModelConfig

    @classmethod
    def of(cls, folder: Path) -> "Given":
        """Looks into a folder; the weights are not read.

        Raises:
            UserError: It holds no pre-trained model.
        """
        missing = [name for name in _FILES if not (folder / name).is_file()]
        if missing:
            said = f"has no {missing[0]}" if folder.is_dir() else "is no folder"
            raise UserError(
                f"{_KEY}={folder} {said}; give the export of a pre-training (RUN/stages/pretrain/export), or what "
                "`trimline import` wrote"
            )
        try:
            described = read_described(folder / "config.json")
            _check_kind(described)
            return cls(folder, described, ModelConfig.from_dict(described.get("model", {})))
        except UserError as error:
            raise UserError(f"{_KEY}={folder}: {error}") from error

    @functools.cached_property
    def loader(self) -> LoaderConfig:
        """How its pictures are made, and how long its texts were."""
        return loader_of(self.folder, dict(self.described), self.model)

    def says(self, tokenizer: Path | None) -> dict[str, Any]:
        """Keys of a run that are the folder's to say, with its values; what it does not say is left to the recipe.

        Args:
            tokenizer: Folder of the one that is named beside it.
        """
        loader = {name: getattr(self.loader, name) for name in ("height", "width", *_PREPARED)}
        said = dict(flat({"model": asdict(self.model), "loader": loader}))
        if has_tokenizer(self.folder):
            tokenizer, said["tokenizer.path"] = self.folder, str(self.folder)
        if "imported" in self.described:
            said["pretrain.pruning.method"] = "none"  # whatever a recipe prunes, nobody has pruned these so
        if tokenizer is not None or "imported" in self.described:
            read = usual_texts(self.model.backbone, self.described["kind"]).said_in(tokenizer or self.folder)
            said |= {f"tokenizer.{name}": getattr(read, name) for name in ("max_words", "clean", "end")}
        return said

    def check_agrees(self, config: RunConfig) -> None:
        """Refuses a run that wants other pictures or words than the model was trained with.

        Raises:
            UserError: Naming what differs.
        """
        if config.tokenizer.path is None:
            raise UserError(
                f"{_KEY}={self.folder} has no tokenizer, as imported weights have none; give the folder of the one "
                "that they were trained with, by --tokenizer.path DIR"
            )
        for name in _PREPARED if "loader" in self.described else ():
            own, wanted = (_plain(getattr(each, name)) for each in (self.loader, config.loader))
            if own != wanted:
                raise UserError(
                    f"loader.{name}={wanted} is not what {_KEY}={self.folder} was trained with, {own}; leave it out"
                )
        check_fits(self.folder, config.model, given_tokenizer(config.tokenizer), config.loader)
        check_sizes(config.model, config.loader)


def _check_kind(described: Mapping[str, Any]) -> None:
    kind = described.get("kind")
    if kind in TASKS:
        raise UserError(f"it holds a model that is fine-tuned for {kind}; give the pre-trained one that it began from")
    if kind not in BEGINNINGS:
        raise UserError(f"it holds a {kind!r} model, but a pre-trained backbone is wanted")


def read_run(files: Sequence[Path], overrides: Sequence[str], here: bool = True) -> RunConfig:
    """The configuration of a run; where `pretrained` is given, its folder says what model, pictures and words are.

    That lies over the files, which may be of another model, and under the overrides, which are meant for this one.

    Args:
        files: YAML files; later ones win.
        overrides: As on a command line.
        here: Whether the folder can be looked into from this machine.

    Raises:
        UserError: For a mistake in the configuration, or a folder that holds no pre-trained model or another one.
    """
    folder = told_value(files, overrides, _KEY)
    if folder is None:
        return read_config(RunConfig, files, overrides)
    if not here:
        return read_config(RunConfig, files, overrides, _words(_UNUSED))
    given = Given.of(Path(folder).expanduser().absolute())
    asked: dict[str, Any] = {}
    for file in files:
        asked |= flat(load_yaml(file))
    tokenizer = told_value(files, overrides, "tokenizer.path")
    says, room = given.says(None if tokenizer is None else Path(tokenizer).expanduser()), given.model.text.longest
    if isinstance(wanted := asked.get("loader.max_tokens"), int) and wanted > room:
        says["loader.max_tokens"] = room
    _log_replaced(given.folder, asked, says)
    beneath = _words({**_UNUSED, "loader.max_tokens": given.loader.max_tokens})
    config = read_config(RunConfig, files, [*_words(says), *overrides], beneath)
    given.check_agrees(config)
    return config


def check_given(config: RunConfig, until: str | None) -> None:
    """Refuses, before anything runs, a given model that cannot begin the run; reads its weights.

    Raises:
        UserError: Naming the folder, or the keys that do not fit it.
    """
    if config.pretrained is None:
        return
    if until == "pretrain":
        raise UserError(
            f"{_KEY}={config.pretrained} takes the place of pre-training, so there is nothing to pre-train; use "
            f"`trimline trim` or `trimline run`, or leave {_KEY} out"
        )
    given = Given.of(Path(config.pretrained))
    given.check_agrees(config)
    try:
        check_guidance(config.pretrain.pruning, config.model)
    except UserError as error:
        raise UserError(
            f"pretrain.pruning does not fit {_KEY}={given.folder}: {error}; or give --pretrain.pruning.method none"
        ) from error
    _check_matching(given, config, until)
    load_backbone(given.folder)
    decoding = [task.title for task in tasks_of(config) if task.targets and task.config.trim.task in _DECODING]
    if decoding and given.described["kind"] != "backbone":
        log.warning("%s=%s has no decoder: that of %s begins as drawn", _KEY, given.folder, ", ".join(decoding))
    elif decoding and WORD_HEAD in given.described.get("lacking", ()):  # ALBEF's, from retrieval
        log.warning("%s=%s tells no words: those of %s begin as drawn", _KEY, given.folder, ", ".join(decoding))


def _check_matching(given: Given, config: RunConfig, until: str | None) -> None:
    """Refuses what would begin from, or rank by, a matching head that no weights were given for."""
    if not lacks_matching(given.described):
        return
    tasks = [task.config.trim.task for task in tasks_of(config) if task.targets]
    asked = [f"trim.task={task}" for task in tasks if task in _MATCHING]
    if until != "trim" and config.evaluate.retrieval_splits:
        asked.append("evaluate.retrieval_splits (set it to [])")
    if asked:
        raise UserError(
            f"{_KEY}={given.folder} came without the head that matches pictures with texts, and it is asked for by "
            f"{', '.join(asked)}; leave that out, or give weights from pre-training"
        )


def weights_digest(folder: Path) -> str:
    """Stands for the weights and sizes in a folder, wherever it lies."""
    return "-".join(
        _digest(path, path.stat().st_size, path.stat().st_mtime_ns) for path in map(folder.joinpath, _FILES)
    )


@functools.lru_cache
def _digest(path: Path, _size: int, _changed: int) -> str:
    """Of a file, which is gigabytes: read once as long as it stays the same."""
    return sha256_file(path)


def told_value(files: Sequence[Path], overrides: Sequence[str], key: str) -> str | None:
    """What a key will be read as, where that decides what else is read; None where nobody tells it.

    Raises:
        UserError: It cannot be read.
    """
    told = [every[key] for every in (dict(flat(load_yaml(file))) for file in files) if key in every]
    for word in words_of(overrides, key):
        try:
            told.append(yaml.safe_load(word.partition("=")[2]))
        except yaml.YAMLError as error:
            raise UserError(f"{word} cannot be read: give one value") from error
    return None if not told or told[-1] is None else str(told[-1])


def words_of(overrides: Sequence[str], *keys: str) -> list[str]:
    """The overrides of these keys, or of keys below them, each as one word."""
    found = []
    for word, after in zip(overrides, [*overrides, ""][1:], strict=True):
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and any(name == key or name.startswith(f"{key}.") for key in keys):
            found.append(f"--{name}={value if equals else after}")
    return found


def _log_replaced(folder: Path, asked: Mapping[str, Any], says: Mapping[str, Any]) -> None:
    """Says what of the files is not taken, in one process of all."""
    if os.environ.get("RANK", "0") != "0":
        return
    other = [key for key, value in says.items() if key in asked and _plain(asked[key]) != _plain(value)]
    shown = [f"{key} is {_plain(says[key])}, not {_plain(asked[key])}" for key in other[:_SHOWN]]
    more = [f"and {len(other) - _SHOWN} more"] if len(other) > _SHOWN else []
    if other:
        log.info("%s=%s says otherwise than the recipe: %s", _KEY, folder, "; ".join(shown + more))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _words(values: Mapping[str, Any]) -> list[str]:
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]
