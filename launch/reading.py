"""Reads typed configurations from YAML files and overrides, and names the nearest key where one is unknown.

A field of type ``dict[str, SomeDataclass]`` is a group of named parts: `tasks.vqa.trim.targets` is a key like any
other, in files, which are laid over each other, and on the command line.
"""

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
Named = Mapping[str, Sequence[str]]
"""For each group of named parts the names that are given."""
_SKIP = frozenset({types.NoneType})
_REFUSAL = re.compile(r"(?P<key>[A-Za-z_][\w.]*)=(?P<value>\S+) ")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_UNION = re.compile(
    r"Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors: .* Given value: (.*)"
)
_NESTED = re.compile(r"NestedArg\(key='(\w+)', val='([^']*)'\)")
_PART = re.compile(r"<class '[\w.]*\.(\w+)'>")


def read_config(kind: type[T], files: Sequence[Path], overrides: Sequence[str], beneath: Sequence[str] = ()) -> T:
    """Builds a configuration: later files win over earlier ones, overrides over all files.

    Args:
        kind: A dataclass, whose fields may be dataclasses, or dataclasses by name.
        files: YAML files.
        overrides: As on a command line, such as ``["--data.root", "DIR", "--seed=1"]``.
        beneath: What holds where no file and no override says otherwise, written like overrides.

    Raises:
        UserError: For a key that does not exist, a value of the wrong type, or one that a dataclass refuses.
    """
    contents = {str(file): load_yaml(file) for file in files}
    names = _names(kind, contents, overrides)
    known = known_keys(kind, names=names)
    for where, content in contents.items():
        _check_keys(kind, content, where, "", known)
    _check_overrides(overrides, known)
    parser = _parser(kind, names)
    layers = [part for file in files for part in ("--config", str(file))]
    arguments = [*beneath, *layers, *overrides]
    try:
        given = parser.parse_args(arguments)
    except (argparse.ArgumentError, jsonargparse.ArgumentError) as error:
        raise UserError(_explain(redact(str(error)))) from error
    config = _built(kind, given, _parser(kind) if any(names.values()) else parser)
    _refuse_secrets(as_json(config))
    return config


def _built(kind: type[T], given: jsonargparse.Namespace, parser: jsonargparse.ArgumentParser) -> T:
    """The configuration of parsed values; a refusal tells the whole key, below the name of a part too."""
    groups = {group: _parts(group, inner, given.pop(group, None) or {}) for group, inner in named(kind).items()}
    try:
        read = parser.instantiate(given)
        plain = {field.name: read[field.name] for field in _fields(kind) if field.name not in groups}
        return kind(**plain, **groups)
    except UserError as error:
        raise UserError(_with_whole_key(str(error), known_keys(kind), given)) from error


def _parts(group: str, kind: type[Any], given: Mapping[str, Any] | jsonargparse.Namespace) -> dict[str, Any]:
    parts = {}
    for name in given if isinstance(given, Mapping) else given.keys(branches=True, nested=False):
        try:
            parts[name] = _built(kind, given[name], _parser(kind))
        except UserError as error:
            raise UserError(below(f"{group}.{name}", kind, str(error))) from error
    return parts


def below(key: str, kind: type[Any], message: str) -> str:
    """A refusal of a part with its keys as they are called in the whole configuration; else the part's own before it.

    Args:
        key: Where the part stands; empty for the whole.
        kind: Its dataclass.
        message: As told of a part that knows nothing of the whole, such as ``trim.targets=[] is empty``.
    """
    if not key:
        return message
    groups = "|".join(name for name, inner in members(kind) if inner is not None)
    told = re.sub(rf"(?<![\w.])(?=(?:{groups})\.\w)", f"{key}.", message)
    return told if told != message else f"{key}: {message}"


def check_name(group: str, name: str) -> None:
    """Refuses what cannot be the name of a part.

    Raises:
        UserError: It is no plain word.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{group}.{name}: a name is a word of small letters, digits and '_', such as {group}.vqa")


def named(kind: type[Any]) -> dict[str, type[Any]]:
    """The fields of a dataclass that hold dataclasses by name, each with their type."""
    hints = typing.get_type_hints(kind)
    held = {name: typing.get_args(hint)[-1] for name, hint in hints.items() if typing.get_origin(hint) is dict}
    return {name: inner for name, inner in held.items() if isinstance(inner, type) and dataclasses.is_dataclass(inner)}


def _names(kind: type[Any], contents: Mapping[str, Mapping[str, Any]], overrides: Sequence[str]) -> Named:
    found = {}
    for group in named(kind):
        names: list[str] = []
        for where, content in contents.items():
            names += [key.split(".")[1] for key in map(str, content) if key.startswith(f"{group}.")]
            value = content.get(group, {})
            if not isinstance(value, Mapping):
                raise UserError(f"{group}={value} in {where}: names are wanted, each with its keys")
            names += map(str, value)
        words = [word[2:].split("=", 1)[0].split(".") for word in overrides if word.startswith("--")]
        if [group] in words:
            key = known_keys(named(kind)[group])[1]
            raise UserError(f"--{group} is given by name and key, such as --{group}.NAME.{key} VALUE")
        names += [word[1] for word in words if word[0] == group]
        for name in names:
            check_name(group, name)
        found[group] = list(dict.fromkeys(names))
    return found


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


def known_keys(kind: type[Any], prefix: str = "", names: Named = types.MappingProxyType({})) -> list[str]:
    """Every key of a configuration, dotted, those of groups too, and those of the parts that have these names."""
    keys, groups = [], named(kind)
    for name, inner in members(kind):
        keys.append(prefix + name)
        if inner is not None:
            keys.extend(known_keys(inner, f"{prefix}{name}."))
        for part in names.get(name, ()):
            keys.append(f"{prefix}{name}.{part}")
            keys.extend(known_keys(groups[name], f"{prefix}{name}.{part}."))
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
    """The fields of a dataclass, each with the dataclass that it holds, or None; those by name have `named`."""
    hints = typing.get_type_hints(kind)
    for field in _fields(kind):
        hint = hints[field.name]
        options = () if typing.get_origin(hint) is dict else typing.get_args(hint) or (hint,)
        inner = [option for option in options if option not in _SKIP and dataclasses.is_dataclass(option)]
        yield field.name, inner[0] if len(inner) == 1 and isinstance(inner[0], type) else None


def load_yaml(file: Path) -> Mapping[str, Any]:
    """The keys and values of a file.

    Raises:
        UserError: It cannot be read, or holds something else.
    """
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
    inside, groups = dict(members(kind)), named(kind)
    for key, value in content.items():
        dotted = f"{prefix}{key}"
        name, _, rest = str(key).partition(".")
        if name not in inside or (rest and dotted not in known):
            raise UserError(_unknown(dotted, where, known))
        inner = inside[name]
        if inner is not None and isinstance(value, Mapping):
            _check_keys(inner, value, where, f"{dotted}.", known)
        for part, keys in value.items() if name in groups and not rest else ():
            if isinstance(keys, Mapping):
                _check_keys(groups[name], keys, where, f"{dotted}.{part}.", known)


def _check_overrides(overrides: Sequence[str], known: Sequence[str]) -> None:
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
    return f"unknown key {key} in {where}; {hint} (docs/reference/config.md lists all)"


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


def _parser(kind: type[Any], names: Named = types.MappingProxyType({})) -> jsonargparse.ArgumentParser:
    """With the keys of each part that has a name; a group without any is a key itself."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False, default_env=False)
    parser.add_class_arguments(kind, skip={group for group, found in names.items() if found})
    for group, inner in named(kind).items():
        for name in names.get(group, ()):
            parser.add_class_arguments(inner, f"{group}.{name}")
    parser.add_argument("--config", action="config")
    return parser


def _explain(message: str) -> str:
    """The parser's words as one line, without its Python types where they have a plain name."""
    line = _UNION.sub(r"Expected one of: \1. Got value: \2", " ".join(message.split()))
    line = _PART.sub(r"the keys of \1", _NESTED.sub(r"\1: \2", line))
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
        ("<class 'NoneType'>", "null"),
    ):
        line = line.replace(ugly, plain)
    missing = line.partition("arguments are required: ")[2]
    if missing:
        first = missing.split(",")[0].strip()
        return f"{first} is missing; give it with --{first} VALUE or in the configuration"
    return line
