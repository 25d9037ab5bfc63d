"""The commands `trimline cluster submit|status|logs|stop`.

Only what a command needs is imported, for `--help` must answer at once.
"""

import argparse
from typing import Any

from launch.answers import Answer, add_command, add_group

SUBMIT_OPTIONS = frozenset({"--address", "--stage", "--python"})
"""Of `submit` itself; all other options of its are keys of the configuration."""


def add_cluster_commands(commands: Any) -> None:
    """Adds all of them."""
    text = "send a run to a Ray cluster, and follow it there"
    example = "cluster submit configs/runs/demo.yaml --out /shared/runs/demo --address http://HEAD:8265"
    kinds = add_group(commands, "cluster", text, example)
    _add_submit(kinds)
    for name, text, handler in (
        ("status", "say what became of a job", _status),
        ("logs", "show what a job has written", _logs),
        ("stop", "let a job write a checkpoint and end", _stop),
    ):
        one = add_command(kinds, name, text, f"cluster {name} trimline-demo-1a2b3c4d", handler)
        one.add_argument("job", metavar="ID", help="that `submit` has printed")
        _add_address(one)
        if name == "logs":
            one.add_argument("--follow", action="store_true", help="go on until the job ends")


def _add_submit(kinds: Any) -> None:
    text = "send a run, with the project as its working directory; keys can be given as --key.sub VALUE"
    example = "cluster submit configs/runs/demo.yaml --out /shared/runs/demo --address http://127.0.0.1:8265"
    parser = add_command(kinds, "submit", text, example, _submit, "docs/reference/config.md")
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="YAML files; later ones win over earlier ones")
    _add_address(parser)
    stages = ("run", "pretrain", "trim", "evaluate")
    parser.add_argument("--stage", choices=stages, default="run", help="how far the run goes (%(default)s: all of it)")
    parser.add_argument("--fresh", action="store_true", help="start over: remove what an earlier run left in `out`")
    taken = "another run's folder on the cluster, of which finished stages are taken over"
    parser.add_argument("--take-from", metavar="RUN", help=taken)
    parser.add_argument("--python", default="python", help="the interpreter on the cluster (%(default)s)")


def _add_address(parser: argparse.ArgumentParser) -> None:
    text = "of the cluster's dashboard (RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265)"
    parser.add_argument("--address", metavar="URL", help=text)


def _submit(options: argparse.Namespace, overrides: list[str]) -> Answer:
    from launch.cluster.commands import submit_command

    given = (options.address, options.stage, options.python, options.fresh, options.take_from)
    return submit_command(options.configs, overrides, *given)


def _status(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.cluster.commands import status_command

    return status_command(options.job, options.address)


def _logs(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.cluster.commands import logs_command

    return logs_command(options.job, options.address, options.follow, options.json)


def _stop(options: argparse.Namespace, _: list[str]) -> Answer:
    from launch.cluster.commands import stop_command

    return stop_command(options.job, options.address)
