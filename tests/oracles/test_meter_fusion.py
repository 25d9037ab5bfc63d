"""METER's co-attention against the authors' own: one layer with its maps, the stack, poolers, answers, gradients."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.models.attention import attention_probabilities
from pipeline.models.blocks import PostNormBlock, ResidualAttention, keys_of
from pipeline.models.config import FusionConfig, ModelConfig
from pipeline.models.heads import TaskClassifier
from pipeline.models.meter import Meter
from pipeline.models.schedule import InBlock, Streams, TokenStream, execute
from pipeline.models.text import TextConfig
from pipeline.models.vision import VisionConfig
from pipeline.objectives.answers import answer_loss
from pipeline.weights.mapping import export_tensors
from pipeline.weights.meter import METER, load_meter_parts
from tests.oracles.vectors import Vectors, assert_same, files, load

PATHS = files("meter_fusion")
FLOAT32 = 2e-4  # the README's


class Reference:
    """One file: METER with its fusion weights and answer head; the encoders are not in the file."""

    def __init__(self, path: Path | None, dtype: torch.dtype = torch.float64) -> None:
        self.vectors: Vectors = load(path)
        self.dtype = dtype
        c = self.vectors.constants
        encoders = {"depth": 1, "heads": 1, "height": 1, "width_px": 1, "patch": 1}
        config = ModelConfig(
            backbone="meter",
            vision=VisionConfig(width=c["image_in"], **encoders),
            text=TextConfig(
                vocab_size=1, width=c["text_in"], heads=1, text_layers=1, fusion_layers=c["layers"], dropout=0.0
            ),
            fusion=FusionConfig(
                width=c["hidden"], heads=c["heads"], hidden=c["ffn"], eps=c["layer_norm_eps_in_layers"]
            ),
        )
        self.model = Meter(config).to(dtype)
        absent = ("visual_encoder.", "text_encoder.", "mlm_head.", "itm_head.")
        heads = load_meter_parts(self.model, self.vectors.under("param/"), absent).tensors
        width = 2 * c["hidden"]
        self.answers = TaskClassifier(width, width, c["answers"], c["layer_norm_eps_in_classifier"]).to(dtype)
        self.answers.load_state_dict(heads["vqa"])

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.vectors[name]
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def stream(self, tokens: str, mask: str) -> TokenStream:
        return TokenStream(self[tokens], self[mask].bool())

    @property
    def stack(self) -> tuple[TokenStream, TokenStream]:
        return self.stream("stack/text", "stack/text_mask"), self.stream("stack/image", "stack/image_mask")


def gradients_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}


def map_of(attention: ResidualAttention, stream: TokenStream, source: TokenStream) -> Tensor:
    projections = attention.self
    return attention_probabilities(projections.query(stream.x), keys_of(projections, source), attention.heads)


@pytest.mark.parametrize("path", PATHS)
def test_one_layer_is_the_references_step_by_step(path: Path | None) -> None:
    reference = Reference(path)
    layer = reference.model.text_layers[0]
    assert isinstance(layer, PostNormBlock)
    assert isinstance(layer.crossattention, ResidualAttention)
    own = reference.stream("layer/hidden_states", "layer/attention_mask")
    other = reference.stream("layer/encoder_hidden_states", "layer/encoder_attention_mask")
    attended = layer.attention(own, [own], None)
    assert_same(attended.x, reference["layer/after_self_attention"])
    assert_same(map_of(layer.attention, own, own), reference["layer/self_attention_probs"])
    crossed = layer.crossattention(attended, [other], None)
    assert_same(crossed.x, reference["layer/after_cross_attention"])
    assert_same(map_of(layer.crossattention, attended, other), reference["layer/cross_attention_probs"])
    assert_same(layer.output(layer.intermediate(crossed.x), crossed.x), reference["layer/output"])


@pytest.mark.parametrize("path", PATHS)
def test_one_layers_output_and_gradients_are_the_references(path: Path | None) -> None:
    reference = Reference(path)
    layer = reference.model.text_layers[0]
    own = reference.stream("layer/hidden_states", "layer/attention_mask")
    other = reference.stream("layer/encoder_hidden_states", "layer/encoder_attention_mask")
    own.x.requires_grad_()
    other.x.requires_grad_()
    out = layer(own, [other], InBlock()).x
    assert_same(out, reference["layer/output"])
    loss = (out * reference["layer/loss_weight"]).sum()
    assert_same(loss, reference["layer/loss"])
    loss.backward()
    gradients, wanted = gradients_of(layer), reference.vectors.under("layer/grad/")
    assert wanted
    for name, gradient in wanted.items():
        assert_same(gradients[name], gradient)
    assert own.x.grad is not None
    assert other.x.grad is not None
    assert_same(own.x.grad, reference["layer/grad_hidden_states"])
    assert_same(other.x.grad, reference["layer/grad_encoder_hidden_states"])


@pytest.mark.parametrize("path", PATHS)
def test_both_streams_are_the_references_after_every_layer(path: Path | None) -> None:
    reference = Reference(path)
    streams: Streams = reference.model.begin_streams(*reference.stack)
    for number, step in enumerate(reference.model.fusion_steps):
        streams = execute([step], streams)
        assert_same(streams["text"].x, reference[f"stack/text_layer{number}"])
        assert_same(streams["image"].x, reference[f"stack/image_layer{number}"])


@pytest.mark.parametrize("path", PATHS)
def test_features_answers_and_gradients_are_the_references(path: Path | None) -> None:
    reference = Reference(path)
    features_BF = reference.model.fuse(*reference.stack).features_BF
    assert_same(features_BF, reference["stack/cls_feats"])
    scores_BA = reference.answers(features_BF)
    assert_same(scores_BA, reference["stack/vqa_logits"])
    loss = answer_loss(scores_BA, reference["stack/vqa_targets"])
    assert_same(loss, reference["stack/vqa_loss"])
    loss.backward()
    heads = {f"heads.vqa.{name}": gradient for name, gradient in gradients_of(reference.answers).items()}
    official = export_tensors({**gradients_of(reference.model), **heads}, METER).tensors
    wanted = reference.vectors.under("stack/grad/")
    assert wanted
    for name, gradient in wanted.items():
        ours = official[name]
        if name == "token_type_embeddings.weight":  # ours has a row for a pair's second image, here without use
            assert not ours[len(gradient) :].any()
            ours = ours[: len(gradient)]
        assert_same(ours, gradient)


@pytest.mark.parametrize("path", PATHS)
def test_in_single_precision_it_stays_near(path: Path | None) -> None:
    reference = Reference(path, torch.float32)
    scores_BA = reference.answers(reference.model.fuse(*reference.stack).features_BF)
    assert_same(scores_BA, reference["f32/stack/vqa_logits"], FLOAT32)
