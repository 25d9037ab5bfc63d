"""Settings of ours compared with foreign weights and the config.json beside them, to say which one to change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from data_prep.errors import UserError
from pipeline.models.vision import VisionConfig


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


def check_switches(config: VisionConfig, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
    """Refuses a vision tower with a norm or a bias that the weights lack, or without one that they have.

    Args:
        config: Ours.
        tensors: By our names.
        prefix: What the tower's names begin with.

    Raises:
        UserError: Naming the switch.
    """
    there = {
        "pre_norm": f"{prefix}norm_pre.weight" in tensors,
        "patch_bias": f"{prefix}patch_embed.proj.bias" in tensors,
    }
    for name, value in there.items():
        if getattr(config, name) != value:
            raise UserError(f"model.vision.{name}={not value} does not fit the weights; set it to {value}")
