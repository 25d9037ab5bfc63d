"""What tasks that are told in words ask of a backbone."""

from collections.abc import Mapping

from torch import Tensor

from data_prep.errors import UserError
from pipeline.models.albef import Albef, AlbefAnswering
from pipeline.models.answering import Answering
from pipeline.models.backbone import Backbone
from pipeline.models.blip import Blip
from pipeline.models.blip_tasks import BlipAnswering


def with_decoder(backbone: Backbone, task: str, able: str, instead: str) -> Blip:
    """The backbone, which has a decoder.

    Args:
        backbone: A pre-trained one.
        task: That wants it.
        able: Which backbones can do it.
        instead: What a user with another one may choose.

    Raises:
        UserError: It has none.
    """
    if not isinstance(backbone, Blip):
        raise UserError(
            f"{task} wants a decoder, which {backbone.config.backbone} has not; pre-train with "
            f"--model.backbone {able}, or choose {instead}"
        )
    return backbone


def answering_of(backbone: Backbone) -> Answering:
    """Question encoder and answer decoder out of a pre-trained backbone; encoders are shared and not copied.

    BLIP's decoder begins as the one that told of pictures, ALBEF's as its fusion layers (both as officially); where
    questions are not as wide as image tokens, keys and values of what it reads begin from nothing.

    Raises:
        UserError: The backbone tells no words, or not one after the other.
    """
    if isinstance(backbone, Answering):
        return backbone
    if isinstance(backbone, Albef):
        return _albef_answering(backbone)
    blip = with_decoder(backbone, "vqa_generative", "albef or blip", "trim.task=vqa")
    answering = BlipAnswering(blip.config)
    answering.visual_encoder, answering.text_encoder = blip.visual_encoder, blip.text_encoder
    _begin(answering, blip.text_decoder.state_dict())
    return answering.train(blip.training)


def _albef_answering(albef: Albef) -> AlbefAnswering:
    answering = AlbefAnswering(albef.config)
    answering.visual_encoder, answering.text_encoder.bert = albef.visual_encoder, albef.text_encoder.bert
    given = albef.text_encoder.state_dict()
    layers = "bert.encoder.layer."
    fusion = [f"{layers}{albef.config.text.text_layers + layer}." for layer in range(albef.config.text.fusion_layers)]
    renamed = {name: tensor for name, tensor in given.items() if not name.startswith(layers)}
    for layer, prefix in enumerate(fusion):
        own = {name.removeprefix(prefix): tensor for name, tensor in given.items() if name.startswith(prefix)}
        renamed |= {f"{layers}{layer}.{name}": tensor for name, tensor in own.items()}
    _begin(answering, renamed)
    return answering.train(albef.training)


def _begin(answering: Answering, given: Mapping[str, Tensor]) -> None:
    """Has the decoder begin with the weights that fit it."""
    own = answering.text_decoder.state_dict()
    fitting = {name: tensor for name, tensor in given.items() if tensor.shape == own[name].shape}
    answering.text_decoder.load_state_dict(fitting, strict=False)
