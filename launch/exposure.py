"""Whether models were trained on a split: told where it is known, and where it is not known, that is told."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.errors import UserError
from data_prep.index import INDEX, indexed_splits, read_shard_list
from launch.config import RunConfig
from launch.model_names import names_apart

_FOREIGN = "its training began with weights that do not say what they were trained on"


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """What is known of a model and a split.

    Attributes:
        model: What the model is called.
        held_out: True where no training read the split, False where one did, None where that is not known.
        why: Why it is not known, or which part of the split was read where it is not all.
        chose: Whether the weights are those of the step that scored best on the split.
    """

    model: str
    held_out: bool | None
    why: str = ""
    chose: bool = False

    @property
    def words(self) -> str:
        """One sentence without its end."""
        chosen = "; its weights were chosen by it" if self.chose else ""
        if self.held_out:
            return f"held out: {self.model} was not trained on this split{chosen}"
        if self.held_out is None:
            return f"not known whether {self.model} was trained on this split: {self.why}{chosen}"
        return f"not held out: {self.model} was trained on {self.why}this split{chosen}"


def in_words(exposures: Iterable[Exposure]) -> list[str]:
    """A sentence for each, without repetitions."""
    return list(dict.fromkeys(each.words for each in exposures))


def in_caption(exposures: Iterable[Exposure]) -> str:
    """The same for below a figure."""
    given = list(exposures)
    names = names_apart([Path(each.model) for each in given])
    named = (replace(each, model=name) for each, name in zip(given, names, strict=True))
    return " ".join(f"{words[:1].upper()}{words[1:]}." for words in in_words(named))


def exposure_of(folder: Path, config: RunConfig, split: Path, trained_on: Collection[str], model: str = "") -> Exposure:
    """What a run folder says of its models and a split.

    It knows its own splits, which its data set holds apart, and by their digests all copies of shards that its training
    read. Whether pictures from elsewhere show the same nobody can tell, nor what foreign weights have seen.

    Args:
        folder: Of the run.
        config: Its configuration.
        split: A folder of indexed shards.
        trained_on: Names of the run's splits that the model was trained on.
        model: What to call it; the folder if not given.
    """
    name, data = model or str(folder), folder / "data"
    read = {(data / each).resolve() for each in trained_on}
    if split.resolve() in read:
        return Exposure(model=name, held_out=False)
    try:
        shards = _digests(split)
        again = len(shards & {digest for each in read for digest in _digests(each)})
    except UserError:  # no reason to refuse an analysis, which may not need that index
        return Exposure(model=name, held_out=None, why="an index of its data cannot be read")
    if again:
        part = f"{again} of the {len(shards)} shards of " if 0 < again < len(shards) else ""
        return Exposure(model=name, held_out=False, why=part)
    if config.pretrain.init is not None or config.pretrained is not None:
        return Exposure(model=name, held_out=None, why=_FOREIGN)
    if split.resolve() in {path.resolve() for path in indexed_splits(data)}:
        return Exposure(model=name, held_out=True)
    return Exposure(model=name, held_out=None, why="it is none of the run's own")


def _digests(split: Path) -> set[str]:
    """What the index says of the bytes of each shard; nothing where there is no index."""
    if not (split / INDEX).is_file():
        return set()
    found = (each.get("sha256") or each.get("samples_sha256") for each in read_shard_list(split)["shardlist"])
    return {str(digest) for digest in found if digest}
