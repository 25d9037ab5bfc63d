"""What `trimline status` shows to people."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from launch.progress import clock, describe
from launch.status import is_over, read_state

WATCH_SECONDS = 2.0
_CLEAR = "\x1b[H\x1b[2J"


def watch(run: Path, as_json: bool, stream: TextIO | None = None, seconds: float = WATCH_SECONDS) -> dict[str, Any]:
    """Shows a run's state again and again until nobody works on it any more, or Ctrl-C; returns the last state.

    On a terminal each picture takes the place of the one before; elsewhere it is written when it has changed.

    Args:
        run: The run folder.
        as_json: Whether each state is a line of JSON.
        stream: Where to; stdout by default.
        seconds: Between two looks.

    Raises:
        UserError: where the folder is no run folder.
    """
    stream = stream or sys.stdout
    shown = ""
    while True:
        state = read_state(run)
        if is_over(state):
            return state
        text = json.dumps(state) if as_json else state_text(state)
        if text != shown:
            stream.write(f"{_CLEAR if stream.isatty() and not as_json else ''}{text}\n")
            stream.flush()
            shown = text
        try:
            time.sleep(seconds)
        except KeyboardInterrupt:
            return state


def state_text(state: Mapping[str, Any]) -> str:
    """A state in words: a head, and a line or two for each stage."""
    width = max(map(len, state["stages"]), default=0)
    lines = [_head(state)]
    for name, stage in state["stages"].items():
        lines.append(f"  {name:<{width}}  {_words(stage)}")
        lines += [f"  {'':<{width}}  {more}" for more in _details(stage)]
    if state["state"] not in ("running", "finished"):
        lines.append("the same `trimline` command again goes on")
    if state["log"] and state["state"] != "finished":
        lines.append(f"log: {state['log']}")
    return "\n".join(lines)


def _head(state: Mapping[str, Any]) -> str:
    name, sign = state["name"], state["last_sign_seconds"]
    since = "" if sign is None else f"; last sign of life {clock(sign)} ago"
    if state["state"] == "running":
        return f"{name}: running, process {state['process']}{since}"
    if state["state"] == "finished":
        return f"{name}: finished {state['finished']}"
    how = {
        "stopped": "stopped or killed: no process of this machine works there",
        "failed": "failed, not running",
        "unfinished": "not running",
    }
    return f"{name}: {how[state['state']]}{since}"


def _words(stage: Mapping[str, Any]) -> str:
    words = str(stage["state"])
    if stage["state"] == "done":
        words += f" in {clock(stage['seconds'])}"
    if stage["waits_for"] and stage["state"] in ("waiting", "blocked"):
        words += f" ({'waits for' if stage['state'] == 'waiting' else 'needs'} {', '.join(stage['waits_for'])})"
    if stage["progress"]:
        words += f": {describe(stage['progress'])}"
        left = stage["progress"].get("eta_seconds")
        if left is not None and stage["state"] == "running":
            words += f", {clock(left)} left"
    if stage["error"] and stage["state"] == "failed":
        words += f": {stage['error']}"
    return words + (f" (started {stage['restarts'] + 1} times)" if stage["restarts"] else "")


def _details(stage: Mapping[str, Any]) -> list[str]:
    """What else there is to know of a stage that is not done."""
    lines = []
    if stage["state"] in ("running", "interrupted"):
        losses = [f"{name} {value:.4g}" for name, value in stage["losses"].items() if value is not None]
        if stage["step"] is not None:
            bad = [f"NaN or infinite: {stage['non_finite']}"] if stage["non_finite"] else []
            lines.append(f"step {stage['step']:,}: {', '.join([*losses, *bad, *_speed(stage['speed'])])}")
        if stage["checkpoint"]:
            age = clock(stage["checkpoint"]["age_seconds"])
            where = f", in {stage['checkpoint']['where']}" if stage["checkpoint"]["where"] else ""
            lines.append(f"last checkpoint: step {stage['checkpoint']['step']:,}, {age} ago{where}")
    if (scored := stage.get("validation")) is not None and stage["state"] != "waiting":
        lines.append(f"validation: {_scores(scored)}")
    if stage["state"] not in ("done", "waiting", "not begun", "blocked"):
        lines += [f"log: {stage['logs'][-1]}{_others(len(stage['logs']) - 1)}"] if stage["logs"] else []
    return lines + ([stage["wandb_problem"]] if stage["wandb_problem"] else [])


def _scores(scored: Mapping[str, Any]) -> str:
    named = {name: value for name, value in scored.items() if name not in ("step", "best", "best_step", "at_target")}
    words = ", ".join(f"{name} {value:.2f}" for name, value in named.items() if value is not None)
    words = f"{words} after step {scored['step']:,}"
    if "best" not in scored:
        return f"{words}; none has come near the wanted cost yet"
    return f"{words}; best {scored['best']:.2f} after step {int(scored['best_step']):,}"


def _others(ranks: int) -> str:
    return f" (beside it those of {ranks} other ranks)" if ranks else ""


def _speed(speed: Mapping[str, float]) -> list[str]:
    words = []
    if "samples_per_second" in speed:
        words.append(f"{speed['samples_per_second']:.4g} samples/s")
    if "mfu" in speed:
        words.append(f"{speed['mfu']:.1%} of the device's peak")
    elif "tflops_per_device" in speed:
        words.append(f"{speed['tflops_per_device']:.3g} TFLOP/s a device")
    if "data_wait" in speed:
        words.append(f"{speed['data_wait']:.0%} waiting for data")
    return words
