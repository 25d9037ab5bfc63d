"""Training state as runs of elements of named tensors, so that any number of processes can read what others wrote.

Each process writes the elements that it holds, whatever its engine and ZeRO stage; whoever reads asks for the elements
that it is to hold, and they are put together from all files.

    exp_avg/model.visual_encoder.cls_token@96    elements 96.. of that parameter's first moment
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from data_prep.errors import UserError

WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")
_KEY = re.compile(r"([a-z_]+)/(.+)@(\d+)")


@dataclass(frozen=True)
class Held:
    """The part of a parameter or buffer that this process holds; writing into its views changes the state.

    Attributes:
        name: As in the module's state_dict.
        start: First element, counted in the flattened tensor.
        views: By kind (weight, exp_avg, exp_avg_sq): flat and of equal length.
    """

    name: str
    start: int
    views: Mapping[str, Tensor]


def to_fragments(parts: Iterable[Held]) -> dict[str, Tensor]:
    """The same by key, for a file; parts without elements are left out."""
    return {
        f"{kind}/{part.name}@{part.start}": view.detach()
        for part in parts
        for kind, view in part.views.items()
        if view.numel()
    }


def share(length: int, rank: int, world_size: int) -> slice:
    """Which of `length` elements a rank writes where each of them holds all."""
    return slice(length * rank // world_size, length * (rank + 1) // world_size)


class FragmentFiles:
    """All fragments of a checkpoint; files are opened as they are needed and read by range.

    Args:
        files: The safetensors files of all ranks.

    Raises:
        UserError: A file cannot be read.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._runs: dict[tuple[str, str], list[tuple[int, int, str, int]]] = defaultdict(list)
        self._files = [_open(path) for path in files]
        for number, file in enumerate(self._files):
            for key in file.keys():  # noqa: SIM118 (no mapping)
                match = _KEY.fullmatch(key)
                assert match is not None, key
                start = int(match[3])
                length = file.get_slice(key).get_shape()[0]
                self._runs[match[1], match[2]].append((start, start + length, key, number))
        for runs in self._runs.values():
            runs.sort()

    def has(self, kind: str, name: str) -> bool:
        """Whether there are elements of that kind."""
        return (kind, name) in self._runs

    def read_into(self, part: Held) -> None:
        """Fills the views of a part.

        Raises:
            UserError: Some of its elements are in no file.
        """
        for kind, view in part.views.items():
            done = part.start
            for begin, values in self._read(kind, part.name, part.start, part.start + view.numel()):
                if begin != done:
                    break
                view[begin - part.start : begin - part.start + len(values)].copy_(values)
                done = begin + len(values)
            if done != part.start + view.numel():
                raise UserError(f"this checkpoint lacks elements {done}.. of {kind}/{part.name}; use an earlier one")

    def _read(self, kind: str, name: str, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        for begin, end, key, number in self._runs.get((kind, name), ()):
            low, high = max(begin, start), min(end, stop)
            if low < high:
                yield low, self._files[number].get_slice(key)[low - begin : high - begin]


def _open(path: Path) -> Any:  # safetensors ships no types for it
    try:
        return safetensors.safe_open(path, "pt")
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}); use an earlier checkpoint") from error
