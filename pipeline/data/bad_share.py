"""How much of a split may be impossible to use."""

from data_prep.errors import UserError

_GRACE = 1000  # samples over which the share of bad ones is taken at least


def check_bad_share(seen: int, bad: int, allowed: float, last: str = "") -> None:
    """Refuses data of which too much cannot be used.

    Args:
        seen: Samples that were used.
        bad: Samples that could not be.
        allowed: Share of all, of a thousand at least.
        last: The last bad one, and why.
    """
    if bad > allowed * max(seen + bad, _GRACE):
        named = f", the last one {last}" if last else ""
        raise UserError(
            f"{bad} of {seen + bad} samples could not be used{named}; more than max_bad_share={allowed}: check the "
            "shards with `trimline verify`, or allow more"
        )
