"""What shapes do not tell: heads, eps and activations, compared with the config.json beside foreign weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_prep.errors import UserError


@dataclass(frozen=True)
class Described:
    """A field of ours under their name.

    Attributes:
        ours: Name of the field.
        theirs: Key in config.json.
        default: What a missing key stands for.
    """

    ours: str
    theirs: str
    default: object


def check_described(group: str, config: object, described: Mapping[str, object], fields: Sequence[Described]) -> None:
    """Refuses sizes that would load without complaint and compute something else.

    Args:
        group: Key of `config`, for the message.
        config: Ours.
        described: Theirs.
        fields: What is compared.

    Raises:
        UserError: Naming the key, both values and the one to set.
    """
    for each in fields:
        ours, theirs = getattr(config, each.ours), described.get(each.theirs, each.default)
        if ours != theirs:
            raise UserError(
                f"{group}.{each.ours}={ours}, but the config.json of the weights has {each.theirs}={theirs}; "
                "set it to that"
            )
