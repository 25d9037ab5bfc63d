"""The pruning vision towers of all variants against the authors' own: tokens, selections, gradients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.models.clip import Clip
from pipeline.models.config import ModelConfig
from pipeline.models.schedule import CLS, InBlock, Intervention, Step, Streams, TokenStream, execute
from pipeline.models.text import TextConfig
from pipeline.models.vision import VisionConfig, VisionTower
from pipeline.pruning.elip import ElipConfig, TextGuidedPruning
from pipeline.weights.clip import openai_projection, openai_vision_rules
from pipeline.weights.mapping import NameMap, export_tensors, fill, import_tensors, rename
from tests.oracles.vectors import Vectors, assert_same, files, load

PATHS = files("elip_vit")
FLOAT32 = 2e-4  # the README's
OFFICIAL = NameMap(
    (openai_projection("proj", "vision_proj.weight"), *openai_vision_rules("", "visual_encoder."))
)  # fmt: skip
TIMM = NameMap((rename("{rest}", "visual_encoder.{rest}"),))


@dataclass
class Looker:
    """Keeps the image stream as it is before some layers."""

    layers: Sequence[int]
    seen: dict[int, TokenStream] = field(default_factory=dict)

    def before(self, step: Step, streams: Streams) -> tuple[Streams, Mapping[str, InBlock]]:
        if step.layer in self.layers:
            self.seen[step.layer] = streams["image"]
        return streams, {}


class Reference:
    """One file: the tower it describes with its weights, and how it is pruned."""

    def __init__(self, path: Path | None, dtype: torch.dtype = torch.float64) -> None:
        self.vectors: Vectors = load(path)
        self.constants = self.vectors.constants
        self.dtype = dtype
        self.names = OFFICIAL if self.constants["variant"] in ("clip", "meter") else TIMM
        # Two towers and a projection: CLIP needs them all, of the others only the vision tower is used.
        self.model = Clip(
            ModelConfig(
                backbone="clip",
                vision=self.vision_config(),
                text=TextConfig(vocab_size=1, width=1, heads=1, text_layers=1, fusion_layers=0, max_positions=1),
                embed=self.constants.get("output_dim", 1),
            )
        ).to(dtype)
        imported = import_tensors(self.vectors.under("param/"), self.names)
        absent = ["text_encoder.", "text_proj.", "temp", *([] if self.has_projection else ["vision_proj."])]
        fill(self.model, imported.tensors, absent, imported.unknown)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.vectors[name]
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def vision_config(self) -> VisionConfig:
        c = self.constants
        return VisionConfig(
            height=c["image_size"][0],
            width_px=c["image_size"][1],
            patch=c["patch_size"],
            width=c["embed_dim"],
            depth=c["num_blocks"],
            heads=c["num_heads"],
            mlp_ratio=c["mlp_ratio"],
            eps=c["layer_norm_eps"],
            activation="quick_gelu" if "sig" in c["activation"] else "gelu",
            pre_norm=c["norm_before_blocks"],
            patch_bias=c["patch_embed_bias"],
        )

    @property
    def tower(self) -> VisionTower:
        return self.model.visual_encoder

    @property
    def has_projection(self) -> bool:
        return "param/proj" in self.vectors

    @property
    def stages(self) -> list[tuple[str, int]]:
        """Names of the stages and their first layers."""
        begins = self.constants["begin_layers_zero_based"]
        return [(f"stage{number}", begin) for number, begin in enumerate(begins, start=2)]

    def pruning(self, text: str) -> TextGuidedPruning:
        c, patches = self.constants, self.tower.config.patches
        begins = c["begin_layers_zero_based"]
        config = ElipConfig(
            guidance="stage",
            depths=tuple(b - a for a, b in zip([0, *begins], [*begins, c["num_blocks"]], strict=True)),
            ratios=tuple(c["keep_ratios"]),
            vision_weight=c["vision_weight_lambda"],
            count_base={patches: "patches", patches + 1: "tokens"}[c["keep_count_base"]],  # type: ignore[arg-type]
        )
        config.check(c["num_blocks"], patches)
        assert list(config.depths[1:]) == c["lookahead_layers"]
        assert config.keeps(patches) == c["num_keep_tokens"]
        sentence = self.model.to_vision_width(self[text]) if self.has_projection else self[text]
        return TextGuidedPruning(config, self.tower.steps, patches, sentence)

    def run(self, *interventions: Intervention) -> TokenStream:
        streams = {"image": self.tower.embed(self["input/pixels"])}
        return self.tower.finish(execute(self.tower.steps, streams, interventions)["image"])

    def check_pooled(self, image: TokenStream, name: str) -> None:
        assert (name in self.vectors) == self.has_projection
        if self.has_projection:
            assert_same(self.model.vision_proj(image.cls), self[name])

    def check_gradients(self, loss: Tensor, prefix: str, tolerance: float = 1e-9) -> None:
        self.model.zero_grad()
        loss.backward()
        wanted = self.vectors.under(prefix)
        assert wanted, f"the file has no gradients under {prefix}"
        # None is what torch leaves where nothing flows; the files then have zeros.
        ours = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in self.model.named_parameters()}
        official = export_tensors(ours, self.names).tensors
        for name, gradient in wanted.items():
            assert_same(official[name], gradient, tolerance)


@dataclass
class PrunedRun:
    """A pruned forward, with what entered each stage before and after pruning."""

    reference: Reference
    text: str = "input/text_cls"

    def __post_init__(self) -> None:
        layers = [layer for _, layer in self.reference.stages]
        self.pruning = self.reference.pruning(self.text)
        self.entering, self.pruned = Looker(layers), Looker(layers)
        self.image = self.reference.run(self.entering, self.pruning, self.pruned)

    @cached_property
    def loss(self) -> Tensor:
        return (self.image.x * self.reference["input/loss_weight"]).sum()


@pytest.mark.parametrize("path", PATHS)
def test_pruned_tokens_and_gradients_are_the_references(path: Path | None) -> None:
    reference = Reference(path)
    run = PrunedRun(reference)
    assert_same(run.image.x, reference["out/tokens"])
    assert_same(run.loss, reference["out/loss"])
    reference.check_pooled(run.image, "out/pooled")
    reference.check_gradients(run.loss, "grad/")


@pytest.mark.parametrize("path", PATHS)
def test_each_stage_asks_selects_and_merges_as_the_reference(path: Path | None) -> None:
    reference = Reference(path)
    run = PrunedRun(reference)
    for stage, layer in reference.stages:
        scores_Bn, selection = run.pruning.scores[layer], run.pruning.selections[layer]
        assert_same(run.pruning.blended_cls(run.entering.seen[layer]), reference[f"{stage}/lookahead_cls"])
        assert_same(scores_Bn, reference[f"{stage}/attn_cls"])
        assert torch.equal(selection.kept_BK, reference[f"{stage}/kept_pos"])
        falling_Bn = scores_Bn.sort(descending=True, stable=True).indices
        pruned_pos = reference[f"{stage}/pruned_pos"]
        assert torch.equal(falling_Bn[:, selection.kept_BK.shape[1] :], pruned_pos)
        assert selection.weight_Bn is not None
        assert_same(selection.weight_Bn.gather(1, pruned_pos), reference[f"{stage}/pruned_weight"])
        tokens = run.pruned.seen[layer].x
        assert_same(tokens, reference[f"{stage}/tokens_in"])
        assert_same(tokens[:, -1], reference[f"{stage}/merged"])


@pytest.mark.parametrize("path", PATHS)
def test_kept_tokens_are_traced_back_to_their_patches(path: Path | None) -> None:
    reference = Reference(path)
    run = PrunedRun(reference)
    for stage, layer in reference.stages:
        origin = run.pruned.seen[layer].origin
        assert origin is not None
        theirs = reference[f"{stage}/kept_origin"]
        wanted = torch.where(theirs < 0, theirs + CLS, theirs)  # they number merged tokens from -1, we from CLS - 1
        assert torch.equal(origin[:, 1:-1], wanted)


@pytest.mark.parametrize("path", PATHS)
def test_another_text_selects_other_tokens(path: Path | None) -> None:
    reference = Reference(path)
    run = PrunedRun(reference, "alt/text_cls")
    assert_same(run.image.x, reference["alt/tokens"])
    for stage, layer in reference.stages:
        assert torch.equal(run.pruning.selections[layer].kept_BK, reference[f"alt/{stage}/kept_pos"])


@pytest.mark.parametrize("path", PATHS)
def test_without_a_text_nothing_is_pruned(path: Path | None) -> None:
    reference = Reference(path)
    image = reference.run()
    assert_same(image.x, reference["unpruned/tokens"])
    reference.check_pooled(image, "unpruned/pooled")
    loss = (image.x * reference["unpruned/loss_weight"]).sum()
    assert_same(loss, reference["unpruned/loss"])
    reference.check_gradients(loss, "unpruned/grad/")


@pytest.mark.parametrize("path", PATHS)
def test_in_single_precision_it_stays_near(path: Path | None) -> None:
    reference = Reference(path, torch.float32)
    run = PrunedRun(reference)
    assert_same(run.image.x, reference["f32/tokens"], FLOAT32)
    reference.check_gradients(run.loss, "f32/grad/", FLOAT32)
