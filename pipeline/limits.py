"""Checks of a configuration's numbers, in one wording; NaN passes none of them."""

from collections.abc import Mapping

from data_prep.errors import UserError


def at_least(config: object, group: str, least: float, *names: str) -> None:
    """Refuses fields below `least`.

    Raises:
        UserError: Naming the key (`group` and field), its value and the wanted range.
    """
    for name in names:
        if not getattr(config, name) >= least:
            raise UserError(f"{group}.{name}={getattr(config, name)} must be at least {least:g}")


def above_zero(config: object, group: str, *names: str) -> None:
    """Refuses fields that are not above 0, as `at_least` does."""
    for name in names:
        if not getattr(config, name) > 0:
            raise UserError(f"{group}.{name}={getattr(config, name)} must be above 0")


def a_share(config: object, group: str, *names: str) -> None:
    """Refuses fields outside [0, 1], as `at_least` does."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"{group}.{name}={getattr(config, name)} must lie in [0, 1]")


def weights_above_zero(weights: Mapping[str, float], key: str) -> None:
    """Refuses an empty mix, and weights that are not numbers above 0.

    Raises:
        UserError: Naming the key.
    """
    if not weights or any(not 0 < weight < float("inf") for weight in weights.values()):
        raise UserError(f"{key}={dict(weights)} must name at least one split, each with a weight above 0: {{train: 1}}")
