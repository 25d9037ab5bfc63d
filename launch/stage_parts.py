"""Of a run's configuration what the results of its stages depend on: only a change of that makes a stage begin anew."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.data.loader import READING_KEYS
from pipeline.engine_config import LAYOUT_KEYS
from pipeline.loop_config import UPKEEP_KEYS

_TOLD = 3
_WITHOUT = {"engine": LAYOUT_KEYS, "loader": READING_KEYS}
_LATER: Mapping[str, Mapping[str, Any]] = {"evaluate": {"precision": "float32"}, "loader": {"crop": "none"}}
"""Keys that came later, with what was done before there were any: a stage that does so still is the same one."""


def parts_of(run: Mapping[str, Any], *sections: str) -> dict[str, Any]:
    """These sections of a run, and its seed, without the keys that decide nothing of what comes out.

    Args:
        run: The configuration as JSON values.
        sections: Their names.
    """
    return {section: _counting(section, run[section]) for section in (*sections, "seed")}


def _counting(section: str, values: Any) -> Any:
    if not isinstance(values, Mapping):
        return values
    without, before = _WITHOUT.get(section, frozenset()), _LATER.get(section, {})
    counts = {key: value for key, value in values.items() if key not in without}
    counts = {key: value for key, value in counts.items() if key not in before or value != before[key]}
    if "loop" in counts:
        counts["loop"] = {key: value for key, value in counts["loop"].items() if key not in UPKEEP_KEYS}
    return counts


def rules_of(task: str, method: str, trimmed: bool) -> dict[str, str]:
    """Since when a fine-tuning is computed as it is, where no key of the configuration says that it was otherwise.

    Such a stage of an older run begins anew, so that nothing of before stands beside it.

    Args:
        task: Of the stage.
        method: What trims it.
        trimmed: Whether it is trimmed.
    """
    answers = task in ("vqa", "vqa_generative")  # soft scores, and the server's rules
    # Each group's scores follow what it keeps from the beginning; BLIP's guiding text is whole; captions are settled as
    # they are told.
    learned = trimmed and method not in ("ftkd", "trips", "evit", "tome")
    return {"rules": "2026-11-23, groups" if learned else "2026-11-23"} if answers or learned else {}


def ranking_rules(backbone: str, ranks: bool) -> dict[str, str]:
    """Since when evaluations rank as they do: by a match's own score, BLIP with the similarity of features.

    Args:
        backbone: Of the model.
        ranks: Whether pictures and texts are ranked at all.
    """
    return {"ranked": "2026-11-23"} if ranks and backbone != "clip" else {}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The keys that two stages' parts differ in, with both values, for a person; at most three of them."""
    before, after = dict(flat(old)), dict(flat(json.loads(json.dumps(new))))
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    told = [f"{key} was {before.get(key)}, is {after.get(key)}" for key in keys[:_TOLD]]
    return "; ".join(told + ([f"and {len(keys) - _TOLD} more"] if len(keys) > _TOLD else []))


def flat(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values by their dotted keys."""
    if isinstance(values, Mapping) and values:
        for name, value in values.items():
            yield from flat(value, f"{key}.{name}" if key else name)
    else:
        yield key, values
