"""One sentence on what to train with, and why."""

from collections.abc import Mapping, Sequence
from typing import Any

from launch.report.words import duration, number
from launch.scaling.trial import OK

Row = Mapping[str, Any]


def recommendation(rows: Sequence[Row], largest: Mapping[str, Any] | None) -> str:
    """The sentence: the trial that reached the goal soonest, where none did the one that came closest.

    Where nothing was judged, or all guess, it is the fastest one.

    Args:
        rows: Of the table.
        largest: What the search for the largest batch found, if there was one.
    """
    tried = [row for row in rows if row["status"] == OK]
    judged = [row for row in tried if row["seconds_to_goal"] is not None and not row["at_chance"]]
    if not tried:
        return "Nothing can be recommended, for no trial came to its end."
    told = [row for row in tried if row["fixed_loss"] is not None and not row["at_chance"]]
    if judged:
        best = min(judged, key=_seconds)
        why = _why_soonest(best, judged)
    elif told:
        best = min(told, key=lambda row: float(row["fixed_loss"]))
        goal, loss = best["goal"], best["fixed_loss"]
        why = f"no trial reached a loss of {goal:.4g} on the fixed batch, and its {loss:.4g} is closest"
    else:
        best = max(tried, key=lambda row: float(row["samples_per_second"]))
        why = _why_fastest(best, tried)
    return f"Train with {in_words(best)}, for {why}{_critical(best)}{_room(largest)}."


def in_words(row: Row) -> str:
    """A trial's settings."""
    parts = f" in {row['accumulation']} parts of {row['micro_batch']} a worker" if row["accumulation"] > 1 else ""
    words = [
        f"a global batch of {row['global_batch']}{parts}",
        f"a learning rate of {number(row['lr'])}",
        f"pruning {row['pruning']}",
    ]
    words += [] if row["zero_stage"] is None else [f"ZeRO {row['zero_stage']}"]
    words += [row["precision"], *(["recomputed activations"] if row["recompute"] else [])]
    return ", ".join(words) + (f" and {row['workers']} workers" if row["workers"] > 1 else "")


def _seconds(row: Row) -> float:
    return float(row["seconds_to_goal"])


def _why_soonest(best: Row, judged: Sequence[Row]) -> str:
    at_first = bool(best["goal_at_first_look"])
    why = f"{'by its first look ' * at_first}it reached a loss of {best['goal']:.4g} on the fixed batch in "
    why += duration(_seconds(best))
    other = _rival(best, judged)
    if at_first:
        return f"{why} or less (look more often, or give a lower judge.goal, to know how much sooner than others)"
    if other is None:
        return why
    most = "at most " * bool(other["goal_at_first_look"])  # that one may have been there long before
    return f"{why}, {most}{_seconds(other) / _seconds(best):.2f} times as fast as {other['name']}"


def _why_fastest(best: Row, tried: Sequence[Row]) -> str:
    why = f"it saw {number(best['samples_per_second'])} samples a second"
    why_not_loss = "nothing was judged by its loss"
    if any(row["at_chance"] for row in tried):
        why_not_loss = "no loss is better than guessing yet: give more samples to choose by it"
    others = [row for row in tried if row is not best]
    if not others:
        return f"{why} ({why_not_loss})"
    other = max(others, key=lambda row: row["samples_per_second"])
    times = best["samples_per_second"] / other["samples_per_second"]
    return f"{why}, {times:.2f} times as many as {other['name']} ({why_not_loss})"


def _rival(best: Row, judged: Sequence[Row]) -> Row | None:
    """The soonest with another pruning, or, where there is none, with anything else."""
    pruned_otherwise = [row for row in judged if row["pruning"] != best["pruning"]]
    others = pruned_otherwise or [row for row in judged if row is not best]
    return min(others, key=_seconds, default=None)


def _critical(best: Row) -> str:
    if best["critical_batch"] is None:
        return ""
    return f"; so far its critical batch is about {number(round(best['critical_batch']))} samples"


def _room(largest: Mapping[str, Any] | None) -> str:
    found = [] if largest is None else [entry for entry in largest["found"] if entry["largest"] is not None]
    if len(found) < 2 or found[0]["pruning"] != "off":
        return ""
    most = max(found[1:], key=lambda entry: entry["largest"])
    limit = largest["limit_bytes"] / 2**30 if largest is not None else 0.0
    return (
        f"; within {limit:g} GiB a micro-batch may have {most['largest']} samples with pruning {most['pruning']} "
        f"instead of {found[0]['largest']}"
    )
