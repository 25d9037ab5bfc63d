"""Reads typed configurations from YAML files and overrides, and names the nearest key where one is unknown."""

import argparse
import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse
import yaml

from data_prep.errors import UserError
from data_prep.redact import has_secret, redact

T = TypeVar("T")
_SKIP = frozenset({types.NoneType})
_REFUSAL = re.compile(r"(?P<key>[A-Za-z_][\w.]*)=(?P<value>\S+) ")


def read_config(kind: type[T], files: Sequence[Path], overrides: Sequence[str]) -> T:
    """Builds a configuration: later files win over earlier ones, overrides over all files.

    Args:
        kind: A dataclass, whose fields may be dataclasses.
        files: YAML files.
        overrides: As on a command line, such as ``["--data.root", "DIR", "--seed=1"]``.

    Raises:
        UserError: For a key that does not exist, a value of the wrong type, or one that a dataclass refuses.
    """
    known = known_keys(kind)
    for file in files:
        _check_keys(kind, _load(file), str(file), "", known)
    _check_overrides(kind, overrides, known)
    parser = _parser(kind)
    arguments = [part for file in files for part in ("--config", str(file))] + list(overrides)
    try:
        given = parser.parse_args(arguments)
    except (argparse.ArgumentError, jsonargparse.ArgumentError) as error:
        raise UserError(_explain(redact(str(error)))) from error
    try:
        read = parser.instantiate(given)
        config = kind(**{field.name: read[field.name] for field in _fields(kind)})
    except UserError as error:
        raise UserError(_with_whole_key(str(error), known, given)) from error
    _refuse_secrets(as_json(config))
    return config


def _refuse_secrets(values: Any, key: str = "") -> None:
    """Run folders and logs keep a configuration, so nothing in it may be a secret.

    Raises:
        UserError: For a URL with a password or a token in it.
    """
    if isinstance(values, Mapping):
        for name, inner in values.items():
            _refuse_secrets(name, key or "a key")
            _refuse_secrets(inner, f"{key}.{name}".removeprefix("."))
    elif isinstance(values, list):
        for inner in values:
            _refuse_secrets(inner, key)
    elif isinstance(values, str) and has_secret(values):
        raise UserError(
            f"{key}={redact(values)} has a password or a token in its URL, which run folders and logs would keep; "
            "leave it out, and give it to the store's library by its own variables or files, such as AWS_ACCESS_KEY_ID"
        )


def dump_config(config: Any) -> str:
    """The whole configuration as YAML that reads back to an equal one."""
    text: str = yaml.safe_dump(as_json(config), sort_keys=False, allow_unicode=True, width=110)
    return text


def as_json(config: Any) -> dict[str, Any]:
    """The configuration as values that JSON and YAML know: dicts, lists, numbers, words."""
    plain = dataclasses.asdict(config)
    return typing.cast(dict[str, Any], _plain(plain))


def known_keys(kind: type[Any], prefix: str = "") -> list[str]:
    """Every key of a configuration, dotted, those of groups too."""
    keys = []
    for name, inner in members(kind):
        keys.append(prefix + name)
        if inner is not None:
            keys.extend(known_keys(inner, f"{prefix}{name}."))
    return keys


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def _fields(kind: type[Any]) -> tuple[dataclasses.Field[Any], ...]:
    return tuple(field for field in dataclasses.fields(kind) if field.init)


def members(kind: type[Any]) -> Iterator[tuple[str, type[Any] | None]]:
    """The fields of a dataclass, each with the dataclass that it holds, or None."""
    hints = typing.get_type_hints(kind)
    for field in _fields(kind):
        options = typing.get_args(hints[field.name]) or (hints[field.name],)
        inner = [option for option in options if option not in _SKIP and dataclasses.is_dataclass(option)]
        yield field.name, inner[0] if len(inner) == 1 and isinstance(inner[0], type) else None


def _load(file: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; give the path of a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no valid YAML: {' '.join(str(error).split())}") from error
    if content is None:
        raise UserError(f"{file} is empty, but keys and values are wanted: `name: demo`")
    if not isinstance(content, Mapping):
        raise UserError(f"{file} holds a {type(content).__name__}, but keys and values are wanted: `name: demo`")
    return content


def _check_keys(kind: type[Any], content: Mapping[str, Any], where: str, prefix: str, known: Sequence[str]) -> None:
    inside = dict(members(kind))
    for key, value in content.items():
        dotted = f"{prefix}{key}"
        name, _, rest = str(key).partition(".")
        if name not in inside or (rest and dotted not in known):
            raise UserError(_unknown(dotted, where, known))
        inner = inside[name]
        if inner is not None and isinstance(value, Mapping):
            _check_keys(inner, value, where, f"{dotted}.", known)


def _check_overrides(kind: type[Any], overrides: Sequence[str], known: Sequence[str]) -> None:
    """Words that begin with `--` must be keys; below a key that is no group anything goes (`--sizes.train 5`)."""
    groups = {key for key in known if any(other.startswith(f"{key}.") for other in known)}
    for word in overrides:
        if not word.startswith("--"):
            continue
        key = word[2:].split("=", 1)[0].removesuffix("+")
        parents = [".".join(key.split(".")[:count]) for count in range(1, key.count(".") + 1)]
        if key not in known and not any(parent in known and parent not in groups for parent in parents):
            raise UserError(_unknown(key, "the command line", known))


def _unknown(key: str, where: str, known: Sequence[str]) -> str:
    """Says which key is meant: first among those of the same group, then among the last words of all keys."""
    group, _, last = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == group}
    close = difflib.get_close_matches(last, siblings, n=1, cutoff=0.5)
    nearest = siblings[close[0]] if close else next(iter(difflib.get_close_matches(key, known, 1, 0.3)), None)
    elsewhere = [k for k in known if k.rpartition(".")[2] == last]
    if not close and elsewhere:
        nearest = elsewhere[0]
    hint = f"did you mean {nearest}?" if nearest else f"known are {', '.join(siblings.values())}"
    return f"unknown key {key} in {where}; {hint} (--print_config lists all)"


def _with_whole_key(message: str, known: Sequence[str], given: jsonargparse.Namespace) -> str:
    """A refusal with the key as the user may give it, for a part of a configuration knows its own name at most.

    ``loop.samples=0 must be ...`` begins with `pretrain` or with `trim`, whichever has this value.
    """
    match = _REFUSAL.match(message)
    if match is None or match["key"] in known:
        return message
    key, value = match["key"], match["value"]
    whole = [name for name in known if f".{name}".endswith(f".{key}") or f".{key}".endswith(f".{name}")]
    fitting = [name for name in whole if str(given.get(name)) == value]
    return message.replace(key, fitting[0], 1) if len(fitting) == 1 else message


def _parser(kind: type[Any]) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False, default_env=False)
    parser.add_class_arguments(kind)
    parser.add_argument("--config", action="config")
    return parser


def _explain(message: str) -> str:
    """The parser's words as one line, without its Python types where they have a plain name."""
    line = " ".join(message.split())
    for ugly, plain in (
        ("Parser key ", ""),
        ("a typing.Literal", "one of "),
        ("typing.Literal", "one of "),
        ("<class 'tuple'>", "list"),
        ("<class 'list'>", "list"),
        ("<class 'float'>", "number"),
        ("<class 'int'>", "whole number"),
        ("<class 'str'>", "text"),
        ("a <class 'bool'>", "true or false"),
        ("<class 'bool'>", "true or false"),
    ):
        line = line.replace(ugly, plain)
    missing = line.partition("arguments are required: ")[2]
    if missing:
        first = missing.split(",")[0].strip()
        return f"{first} is missing; give it with --{first} VALUE or in the configuration"
    return line
