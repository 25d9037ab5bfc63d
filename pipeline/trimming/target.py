"""What a trimmed model is to cost: a speed-up, multiply-accumulates, or milliseconds on this machine."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from data_prep.errors import UserError

Unit = Literal["x", "GMACs", "ms"]
_UNITS: dict[str, Unit] = {
    "": "x",
    "x": "x",
    "gmac": "GMACs",
    "gmacs": "GMACs",
    "gflop": "GMACs",
    "gflops": "GMACs",
    "ms": "ms",
}
_WRITTEN = re.compile(r"\s*([0-9.]+(?:e[-+]?[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Target:
    """A wanted cost of an instance, mean over instances.

    Attributes:
        amount: How much.
        unit: ``x`` is the untrimmed model's multiply-accumulates over the trimmed one's. ``GMACs`` are 10^9
            multiply-accumulates, which the papers call GFLOPs: a multiplication with its addition counts as one.
            ``ms`` is the time of one instance alone, on the machine that trains.
    """

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, value: float | str) -> "Target":
        """Reads ``2``, ``2.0x``, ``12 GFLOPs`` (or ``12 GMACs``, the same), or ``35 ms``.

        Raises:
            UserError: It is nothing of that.
        """
        written = _WRITTEN.fullmatch(str(value))
        unit = _UNITS.get(written[2].lower()) if written else None
        try:
            amount = float(written[1]) if written else math.nan
        except ValueError:
            amount = math.nan
        least = 1.0 if unit == "x" else 0.0
        if unit is None or not math.isfinite(amount) or amount < least or amount == 0:
            raise UserError(
                f"trim.targets: {value!r} is no target; give a speed-up of at least 1.0 such as 2.0x, "
                "multiply-accumulates such as '12 GMACs' (or '12 GFLOPs', the same), or a time on this machine such as "
                "'35 ms'"
            )
        return cls(amount, unit)

    @property
    def name(self) -> str:
        """Fit for a folder: ``2.0x``, ``12GMACs``, ``35ms``."""
        whole = f"{self.amount:.1f}" if self.unit == "x" else f"{self.amount:.0f}"
        return f"{whole if self.amount % 1 == 0 else format(self.amount, '.4g')}{self.unit}"

    @property
    def plain(self) -> float | str:
        """As a value for JSON that `parse` reads: a number where it is a speed-up."""
        return self.amount if self.unit == "x" else f"{self.amount:.12g} {self.unit}"

    @property
    def is_full(self) -> bool:
        """Whether nothing is to be trimmed."""
        return self.unit == "x" and self.amount == 1

    def __str__(self) -> str:
        """For people: ``2.0x``, ``12 GMACs``, ``35 ms``."""
        return self.name if self.unit == "x" else f"{self.name.removesuffix(self.unit)} {self.unit}"


EVERYTHING = "with every token and head trimmed"
"""As little as SmartTrim can leave."""


def check_target(target: Target, least: float, full: float, said: str = "", stripped: str = EVERYTHING) -> None:
    """Refuses what cannot be reached.

    Args:
        target: Wanted.
        least: Cost of as little as can be left: milliseconds where the target is, else GMACs.
        full: Of the untrimmed model.
        said: On what that rests.
        stripped: How little that is.

    Raises:
        UserError: It is out of reach, with the highest target that is not; or it asks for no trimming.
    """
    unit = "ms" if target.unit == "ms" else "GMACs"
    wanted = full / target.amount if target.unit == "x" else target.amount
    if wanted < least:
        highest = f"{math.floor(100 * full / least * (1 - 1e-9)) / 100:.2f}x"
        if target.unit != "x":
            highest = f"{_up(least)} {unit}, which is {highest}"
        raise UserError(
            f"a target of {target} cannot be reached: {stripped} this model still takes "
            f"{least:.4g} of its {full:.4g} {unit}{said}; the highest target is {highest}"
        )
    if wanted >= full and target.unit != "x":
        raise UserError(
            f"a target of {target} asks for no trimming: the untrimmed model takes {full:.4g} {unit}{said}; give less, "
            "or 1.0x for the untrimmed model"
        )


def _up(amount: float) -> str:
    """Three digits, rounded up: the highest target must itself be one."""
    unit = 10 ** (math.floor(math.log10(amount)) - 2)
    return f"{math.ceil(amount / unit) * unit:.3g}"
