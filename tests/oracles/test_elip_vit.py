"""The pruning vision tower against the authors' own, in float64: tokens, selections, gradients."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.models.schedule import CLS, TokenStream, execute
from pipeline.models.vision import VisionConfig, VisionTower
from pipeline.pruning.elip import ElipConfig, TextGuidedPruning
from tests.oracles.vectors import Vectors, assert_same, files, load

PATHS = files("elip_vit/albef_*.npz") + files("elip_vit/blip_*.npz")


def tower_of(vectors: Vectors) -> VisionTower:
    constants = vectors.constants
    config = VisionConfig(
        height=constants["image_size"][0],
        width_px=constants["image_size"][1],
        patch=constants["patch_size"],
        width=constants["embed_dim"],
        depth=constants["num_blocks"],
        heads=constants["num_heads"],
        mlp_ratio=constants["mlp_ratio"],
        eps=constants["layer_norm_eps"],
    )
    tower = VisionTower(config).double()
    tower.load_state_dict(vectors.under("param/"))
    return tower


def pruning_of(vectors: Vectors, tower: VisionTower, text: str) -> TextGuidedPruning:
    constants = vectors.constants
    begins = constants["begin_layers_zero_based"]
    depths = tuple(b - a for a, b in zip([0, *begins], [*begins, constants["num_blocks"]], strict=True))
    config = ElipConfig(
        guidance="stage",
        depths=depths,
        ratios=tuple(constants["keep_ratios"]),
        vision_weight=constants["vision_weight_lambda"],
    )
    return TextGuidedPruning(config, tower.steps, tower.config.patches, vectors[text])


def run(vectors: Vectors, tower: VisionTower, pruning: TextGuidedPruning | None) -> TokenStream:
    streams = {"image": tower.embed(vectors["input/pixels"])}
    return tower.finish(execute(tower.steps, streams, [] if pruning is None else [pruning])["image"])


def check_gradients(vectors: Vectors, tower: VisionTower, tokens: Tensor, weight: str, prefix: str) -> None:
    tower.zero_grad()
    (tokens * vectors[weight]).sum().backward()
    wanted = vectors.under(prefix)
    assert wanted, f"the file has no gradients under {prefix}"
    gradients = {name: parameter.grad for name, parameter in tower.named_parameters()}
    for name, gradient in wanted.items():
        ours = gradients[name]
        assert ours is not None
        assert_same(ours, gradient)


@pytest.mark.parametrize("path", PATHS)
def test_pruned_tokens_selections_and_gradients_are_the_references(path: Path | None) -> None:
    vectors = load(path)
    tower = tower_of(vectors)
    pruning = pruning_of(vectors, tower, "input/text_cls")
    image = run(vectors, tower, pruning)
    for stage, layer in enumerate(vectors.constants["begin_layers_zero_based"], start=2):
        assert_same(pruning.scores[layer], vectors[f"stage{stage}/attn_cls"])
        selection = pruning.selections[layer]
        assert torch.equal(selection.kept_BK, vectors[f"stage{stage}/kept_pos"])
        assert selection.weight_Bn is not None
        weights = selection.weight_Bn.gather(1, vectors[f"stage{stage}/pruned_pos"])
        assert_same(weights, vectors[f"stage{stage}/pruned_weight"])
    assert_same(image.x, vectors["out/tokens"])
    check_gradients(vectors, tower, image.x, "input/loss_weight", "grad/")


@pytest.mark.parametrize("path", PATHS)
def test_kept_tokens_are_traced_back_to_their_patches(path: Path | None) -> None:
    vectors = load(path)
    tower = tower_of(vectors)
    image = run(vectors, tower, pruning_of(vectors, tower, "input/text_cls"))
    assert image.origin is not None
    theirs = vectors["stage4/kept_origin"]
    wanted = torch.where(theirs < 0, theirs + CLS, theirs)  # they number merged tokens from -1, we from CLS - 1
    assert torch.equal(image.origin[:, 1:-1], wanted)


@pytest.mark.parametrize("path", PATHS)
def test_another_text_selects_other_tokens(path: Path | None) -> None:
    vectors = load(path)
    tower = tower_of(vectors)
    pruning = pruning_of(vectors, tower, "alt/text_cls")
    assert_same(run(vectors, tower, pruning).x, vectors["alt/tokens"])
    for stage, layer in enumerate(vectors.constants["begin_layers_zero_based"], start=2):
        assert torch.equal(pruning.selections[layer].kept_BK, vectors[f"alt/stage{stage}/kept_pos"])


@pytest.mark.parametrize("path", PATHS)
def test_without_a_text_nothing_is_pruned(path: Path | None) -> None:
    vectors = load(path)
    tower = tower_of(vectors)
    image = run(vectors, tower, None)
    assert_same(image.x, vectors["unpruned/tokens"])
    check_gradients(vectors, tower, image.x, "unpruned/loss_weight", "unpruned/grad/")
