"""Names of foreign weights to ours and back, from one list of rules.

A rule pairs templates. ``{i}`` stands for a number, ``{rest}`` for anything, ``{part:q|k}`` for whatever the regular
expression after the colon matches; all names of a rule carry the same placeholders. Both directions read the same
rules: one tensor that is several on the other side (qkv) is split one way and joined the other.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from data_prep.errors import UserError

Transform = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""Tensors of one side of a rule, in the order of its names, to those of the other side."""

_SHOWN = 10
_DEFAULTS = {"i": r"\d+", "p": "weight|bias", "rest": ".+"}
_PLACEHOLDER = re.compile(r"\{(\w+)(?::([^{}]+))?\}")


def _same(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    return tensors


@dataclass(frozen=True)
class Rule:
    """Tensors there that are tensors here.

    Attributes:
        foreign: Templates of their names.
        ours: Templates of our names; none where the tensors are left out on purpose.
        to_ours: From theirs to ours.
        to_foreign: From ours to theirs.
        optional: How many of their names a file may lack (one tensor under several names).
    """

    foreign: tuple[str, ...]
    ours: tuple[str, ...]
    to_ours: Transform = _same
    to_foreign: Transform = _same
    optional: int = 0


def rename(foreign: str, ours: str) -> Rule:
    """One tensor, one tensor."""
    return Rule((foreign,), (ours,))


def keep(name: str) -> Rule:
    """The same name on both sides."""
    return rename(name, name)


def drop(foreign: str) -> Rule:
    """Known, and not wanted; never written back."""
    return Rule((foreign,), ())


def convert(
    foreign: str, ours: str, to_ours: Callable[[Tensor], Tensor], to_foreign: Callable[[Tensor], Tensor]
) -> Rule:
    """One tensor in another layout, such as a transposed one."""
    return Rule((foreign,), (ours,), lambda t: [to_ours(t[0])], lambda t: [to_foreign(t[0])])


def split_rows(foreign: str, *ours: str) -> Rule:
    """One of theirs is several of ours, stacked along the first axis in equal parts."""
    return Rule((foreign,), ours, lambda t: _parts(t[0], len(ours), foreign), lambda t: [torch.cat(list(t))])


def join_rows(foreign: Sequence[str], ours: str) -> Rule:
    """Several of theirs are one of ours, stacked along the first axis."""
    parts = len(foreign)
    return Rule(tuple(foreign), (ours,), lambda t: [torch.cat(list(t))], lambda t: _parts(t[0], parts, ours))


def tied(ours: str, *foreign: str) -> Rule:
    """One tensor under several of their names, of which a file may lack all but one; they must be equal."""
    copies = len(foreign)
    return Rule(foreign, (ours,), lambda t: [_equal(t, foreign)], lambda t: [t[0]] * copies, copies - 1)


@dataclass(frozen=True)
class NameMap:
    """Rules in order; the first that knows a name has it.

    Attributes:
        rules: The rules.
        source: Whose names they are, for messages.
    """

    rules: tuple[Rule, ...]
    source: str = "the file"

    @cached_property
    def _compiled(self) -> dict[str, list[tuple[int, int, re.Pattern[str]]]]:
        return {side: _compile(self.rules, side) for side in ("foreign", "ours")}

    def find(self, name: str, side: str) -> tuple[int, int, tuple[tuple[str, str], ...]] | None:
        """The rule that knows a name, which of its names it is, and what its placeholders stand for."""
        for rule, position, pattern in self._compiled[side]:
            if match := pattern.fullmatch(name):
                return rule, position, tuple(sorted(match.groupdict().items()))
        return None


@dataclass(frozen=True)
class Imported:
    """What came through a map.

    Attributes:
        tensors: By the names of the other side.
        dropped: Names that were left out on purpose.
        unknown: Names that no rule knows, or whose rule lacks another of its names.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def import_tensors(foreign: Mapping[str, Tensor], name_map: NameMap) -> Imported:
    """Foreign names to ours.

    Raises:
        UserError: Tensors that should be one and the same differ, or cannot be split.
    """
    return _translate(foreign, name_map, "foreign", "ours")


def export_tensors(ours: Mapping[str, Tensor], name_map: NameMap) -> Imported:
    """Our names to foreign ones, by the same rules; ours that no rule knows are listed."""
    return _translate(ours, name_map, "ours", "foreign")


def fill(
    module: nn.Module, tensors: Mapping[str, Tensor], allow_missing: Sequence[str] = (), unknown: Sequence[str] = ()
) -> None:
    """Loads weights, all or nothing; values are cast to the module's dtype.

    Args:
        module: Gets them; on the meta device only names and shapes are checked.
        tensors: By the module's names.
        allow_missing: What names may begin with that stay as they are in the module.
        unknown: Foreign names that no rule knew (`Imported.unknown`): they are an error here.

    Raises:
        UserError: Names are missing or unknown, or shapes differ; the first ten of each are listed. Or the module has
            one parameter under two names, for which different values are given.
    """
    wanted = module.state_dict(keep_vars=True)
    shared: dict[int, list[str]] = {}
    for name, parameter in wanted.items():
        shared.setdefault(id(parameter), []).append(name)
    missing = [
        name
        for name, parameter in wanted.items()
        if not any(alias in tensors for alias in shared[id(parameter)]) and not name.startswith(tuple(allow_missing))
    ]
    for names in shared.values():
        given = [name for name in names if name in tensors]
        if given:
            _equal([tensors[name] for name in given], given)
    strangers = [*unknown, *(name for name in tensors if name not in wanted)]
    misshapen = [
        f"{name} {_shape(tensors[name])} where {_shape(wanted[name])} is wanted"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    complaints = [
        _listed("missing", missing),
        _listed("unknown", strangers),
        _listed("wrongly shaped", misshapen),
    ]
    if any(complaints):
        raise UserError(
            f"these weights do not fit the model: {'; '.join(filter(None, complaints))}; "
            "check that the kind of model and its sizes are those of the file"
        )
    module.load_state_dict(tensors, strict=False)


def _translate(given: Mapping[str, Tensor], name_map: NameMap, side: str, other: str) -> Imported:
    result = Imported()
    groups: dict[tuple[int, tuple[tuple[str, str], ...]], dict[int, str]] = {}
    for name in given:
        found = name_map.find(name, side)
        if found is None:
            result.unknown.append(name)
        elif not getattr(name_map.rules[found[0]], other):
            result.dropped.append(name)
        else:
            groups.setdefault((found[0], found[2]), {})[found[1]] = name
    for (number, values), names in groups.items():
        rule = name_map.rules[number]
        needed = len(getattr(rule, side)) - (rule.optional if side == "foreign" else 0)
        if len(names) < needed:
            result.unknown.extend(names.values())
            continue
        transform = rule.to_ours if side == "foreign" else rule.to_foreign
        made = transform([given[names[position]] for position in sorted(names)])
        for template, tensor in zip(getattr(rule, other), made, strict=True):
            result.tensors[_filled(template, dict(values))] = tensor
    return result


def _compile(rules: Sequence[Rule], side: str) -> list[tuple[int, int, re.Pattern[str]]]:
    return [
        (number, position, re.compile(_pattern(template)))
        for number, rule in enumerate(rules)
        for position, template in enumerate(getattr(rule, side))
    ]


def _pattern(template: str) -> str:
    """A template as a regular expression with named groups; a placeholder's second use repeats its first."""
    parts, end, seen = [], 0, set[str]()
    for match in _PLACEHOLDER.finditer(template):
        name, expression = match[1], match[2] or _DEFAULTS[match[1]]
        parts += [
            re.escape(template[end : match.start()]),
            f"(?P={name})" if name in seen else f"(?P<{name}>{expression})",
        ]
        seen.add(name)
        end = match.end()
    return "".join(parts) + re.escape(template[end:])


def _filled(template: str, values: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template)


def _parts(tensor: Tensor, parts: int, name: str) -> Sequence[Tensor]:
    if tensor.ndim == 0 or len(tensor) % parts:
        raise UserError(f"{name} has the shape {_shape(tensor)}, which is not {parts} equal parts; give the right file")
    return tensor.chunk(parts)


def _equal(tensors: Sequence[Tensor], names: Sequence[str]) -> Tensor:
    first = tensors[0]
    for tensor in tensors[1:]:
        if tensor.shape != first.shape or not (first.is_meta or torch.equal(tensor, first)):
            raise UserError(f"{' and '.join(names)} must be one tensor and differ; give a file in which they are tied")
    return first


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _listed(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{more})"
