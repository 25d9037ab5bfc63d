"""What the runs of a comparison say of themselves in run.json: when, how long, at which commit, with which software."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.files import read_json
from launch.report import words
from launch.report.kinds import RUN, strange
from launch.report.words import as_moment


@dataclass(frozen=True)
class Trials:
    """Their facts, as far as they are there.

    Attributes:
        facts: run.json of each run that has one.
        unread: A sentence for each file that cannot be read.
    """

    facts: Sequence[Mapping[str, Any]]
    unread: Sequence[str]

    @classmethod
    def read(cls, folder: Path, names: Iterable[str]) -> "Trials":
        """Those of runs by the names of their folders in a comparison's."""
        facts, unread = [], []
        for name in names:
            try:
                value = read_json(folder / name / "run.json")
            except FileNotFoundError:
                continue  # a comparison may be copied without its runs
            except (OSError, UserError) as error:
                unread.append(f"{name}/run.json cannot be read: {' '.join(str(error).split())}.")
                continue
            if not isinstance(value, Mapping):
                unread.append(f"{name}/run.json cannot be read: it holds no JSON object.")
                continue
            facts.append({key: own for key, own in value.items() if key not in strange(value, RUN)})
        return cls(facts, unread)

    def told(self) -> list[tuple[str, str]]:
        """Start and end of the whole, and the time of all runs together, which may have run side by side."""
        seconds = [each["seconds"] for each in self.facts if each.get("seconds")]
        ends = [each.get("finished") for each in self.facts]
        runs = f"{words.duration(sum(seconds))}, {len(seconds)} runs together" if seconds else ""
        return [
            ("Started", _moment(min(_times(each.get("started") for each in self.facts), default=None))),
            ("Last run finished", _moment(max(_times(ends), default=None))),
            ("Took", runs),
        ]

    def commits(self) -> list[str]:
        """Of all runs, each once."""
        return list(dict.fromkeys(str(each["commit"]) for each in self.facts if each.get("commit")))

    def versions(self) -> list[tuple[str, str]]:
        """Of all software; where runs differ, each version once."""
        found: dict[str, dict[str, None]] = {}
        for each in self.facts:
            for name, version in (each.get("versions") or {}).items():
                found.setdefault(str(name), {})[str(version)] = None
        return [(name, ", ".join(several)) for name, several in found.items()]


def _times(values: Iterable[Any]) -> list[float]:
    return [when.timestamp() for value in values if value and (when := as_moment(value)) is not None]


def _moment(seconds: float | None) -> str:
    return "" if seconds is None else words.moment(seconds)
