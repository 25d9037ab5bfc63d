"""What the fields of a run's files hold: checked once, where they are read."""

import math
from collections.abc import Callable, Mapping
from typing import Any

Kinds = Mapping[str, Callable[[Any], bool]]
"""For each known field whether it can be what it is; fields that are null or not known are always let through."""


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    return _number(value) and math.isfinite(value)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _listed(value: Any) -> bool:
    return isinstance(value, list)


def _mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _counts(value: Any) -> bool:
    """By reason, or one for all."""
    return _whole(value) or (_mapping(value) and all(map(_whole, value.values())))


def _mix(value: Any) -> bool:
    """What was drawn of each data set."""
    names = ("units", "share", "epochs")
    return _mapping(value) and all(_mapping(one) and all(_number(one.get(n)) for n in names) for one in value.values())


def _command(value: Any) -> bool:
    return isinstance(value, str | list)


def _outputs(value: Any) -> bool:
    return _mapping(value) and not strange(value, RESULT)


def strange(value: Mapping[str, Any], kinds: Kinds) -> list[str]:
    """The fields of an object that cannot be what they are."""
    return [name for name, fits in kinds.items() if value.get(name) is not None and not fits(value[name])]


RUN: Kinds = {"name": _text, "command": _command, "seed": _whole, "seconds": _finite, "since": _finite, "commit": _text,
              "stages": _mapping, "versions": _mapping}  # fmt: skip
RESULT: Kinds = {"left_out": _whole, "skipped": _counts, "bad_samples": _counts, "mix": _mix, "samples": _whole}
STATUS: Kinds = {"seconds": _finite, "since": _finite, "ended": _text, "restarts": _whole, "outputs": _outputs}
PROGRESS: Kinds = {"done": _finite, "total": _finite}
INDEXED: Kinds = {"account": _mapping, "shardlist": _listed}
ACCOUNT: Kinds = {"asked": _whole, "written": _whole, "skipped": _counts}
FAULT: Kinds = {"step": _whole, "workers": _whole, "back_to": _whole}
_MEASURED = ("value", "low", "high", "gmacs", "full_gmacs", "unpruned_gmacs", "wanted", "reached", "reached_low",
             "reached_high")  # fmt: skip
ROW: Kinds = {"seed": _whole, **dict.fromkeys(("samples", "skipped", "of"), _whole),
              **dict.fromkeys(("task", "metric", "split"), _text), **dict.fromkeys(_MEASURED, _number)}  # fmt: skip
