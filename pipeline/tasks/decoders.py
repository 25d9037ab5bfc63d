"""What tasks that are told in words ask of a backbone."""

from data_prep.errors import UserError
from pipeline.models.backbone import Backbone
from pipeline.models.blip import Blip


def with_decoder(backbone: Backbone, task: str, instead: str) -> Blip:
    """The backbone, which has a decoder.

    Args:
        backbone: A pre-trained one.
        task: That wants it.
        instead: What a user with another backbone may choose.

    Raises:
        UserError: It has none.
    """
    if not isinstance(backbone, Blip):
        raise UserError(
            f"{task} wants a decoder, which {backbone.config.backbone} has not; pre-train with "
            f"--model.backbone blip, or choose {instead}"
        )
    return backbone
