"""Shows how far a run is: bars on a terminal, a line every quarter of a minute elsewhere."""

import json
import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from launch.graph import Attempt, Outcome, Stage
from pipeline.repeating import Repeating

log = logging.getLogger(__name__)

PROGRESS = "progress.json"
TRACKING = "tracking.json"  # of pipeline.tracking, which takes torch to import
_POLL_SECONDS = 0.5
_LINE_SECONDS = 15.0
_BAR = "{desc:<24} {percentage:3.0f}%|{bar:24}| [{elapsed}<{remaining}]{postfix}"


class ProgressDisplay:
    """Follows the progress files of running stages and says what begins and ends; used as a context manager.

    Args:
        stream: Where it writes, stderr by default; bars if it is a terminal.
        line_seconds: Time between lines where it is none.
    """

    def __init__(self, stream: TextIO | None = None, line_seconds: float = _LINE_SECONDS) -> None:
        self._stream = stream or sys.stderr  # what it is now, not what it was when this was imported
        self._bars_wanted = self._stream.isatty()
        self._line_seconds = line_seconds
        self._lock = threading.Lock()
        self._running: dict[str, Path] = {}
        self._warned: set[str] = set()
        self._bars: dict[str, tqdm[Any]] = {}
        self._next_line = 0.0
        self._showing = Repeating(self._show, _POLL_SECONDS, "progress")

    def __enter__(self) -> "ProgressDisplay":
        self._next_line = time.monotonic() + self._line_seconds
        self._showing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._showing.close()
        for bar in self._bars.values():
            bar.close()

    def say(self, line: str) -> None:
        """Writes a line above the bars."""
        if self._bars_wanted:
            tqdm.write(line, file=self._stream)
        else:
            self._stream.write(line + "\n")
            self._stream.flush()

    def stage_started(self, stage: Stage, attempt: Attempt) -> None:
        """See `launch.graph.Observer`."""
        with self._lock:
            self._running[stage.name] = stage.folder / PROGRESS
        words = f" ({stage.says})" if stage.says else ""
        self.say(f"{stage.name}: {'goes on where it stopped' if attempt.resumed else 'started'}{words}")

    def stage_ended(self, stage: Stage, outcome: Outcome, seconds: float, message: str) -> None:
        """See `launch.graph.Observer`."""
        with self._lock:
            path = self._running.pop(stage.name, None)
            bar = self._bars.pop(stage.name, None)
        if bar is not None:
            bar.close()
        if path is not None:
            self._warn(stage.name, path)
        ends = {"done": f"done in {clock(seconds)}", "skipped": "finished before, skipped"}
        if outcome != "blocked":  # the end of the run names these, in one line
            self.say(f"{stage.name}: {ends.get(outcome) or f'{outcome}: {message}'}")

    def _warn(self, name: str, progress: Path) -> None:
        """Says once what went wrong with wandb, which ends nothing."""
        problem = read_tracking(progress.parent).get("problem")
        with self._lock:
            if not problem or name in self._warned:
                return
            self._warned.add(name)
        self.say(f"{name}: {problem}")

    def _show(self) -> None:
        with self._lock:
            running = dict(self._running)
        states = {name: state for name, path in running.items() if (state := read_progress(path))}
        for name, path in running.items():
            self._warn(name, path)
        if self._bars_wanted:
            for name, state in states.items():
                self._draw(name, state)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + self._line_seconds
            for name, state in states.items():
                self.say(f"{name}: {describe(state)}")

    def _draw(self, name: str, state: dict[str, Any]) -> None:
        with self._lock:
            if name not in self._running:
                return
            if name not in self._bars:
                self._bars[name] = tqdm(desc=name, bar_format=_BAR, file=self._stream, unit=state["unit"])
            bar = self._bars[name]
        bar.total = state["total"]
        bar.n = min(state["done"], state["total"])
        bar.set_postfix_str(state["text"])


def read_progress(path: Path) -> dict[str, Any] | None:
    """A stage's progress, or None where there is none yet."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    wanted = {"done", "total", "unit", "text"}
    return state if isinstance(state, dict) and wanted <= state.keys() else None


def read_tracking(folder: Path) -> dict[str, Any]:
    """How often a stage was started, and what became of wandb; empty where nothing is known."""
    try:
        state = json.loads((folder / TRACKING).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def describe(state: dict[str, Any]) -> str:
    """A progress state as words, such as ``30% (1200 of 4000 samples), loss 1.23``."""
    share = f"{100 * state['done'] / state['total']:.0f}%" if state["total"] else ""
    counted = f" ({state['done']:.0f} of {state['total']:.0f} {state['unit']})" if state["total"] > 1 else ""
    text = f", {state['text']}" if state["text"] else ""
    return f"{share}{counted}{text}"


def clock(seconds: float) -> str:
    """Seconds as words, such as ``41 s`` or ``3 min 05 s``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
