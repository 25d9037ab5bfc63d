"""A ViT of timm in memory as a tower that methods can act in."""

from typing import Any

import pytest
import torch

from data_prep.errors import UserError
from pipeline.weights.timm_vit import tower_from_timm
from tests.pipeline.weights.foreign_models import timm_vit

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(
    "more", [{}, {"img_size": (32, 48), "mlp_ratio": 2.7}, {"num_classes": 0, "init_values": None}]
)
@torch.no_grad()
def test_it_gives_timms_tokens_and_its_weights_go_back(clip: bool, more: dict[str, Any]) -> None:
    vit = timm_vit(clip, quick=clip, **more)
    tower = tower_from_timm(vit)
    pixels = torch.randn(2, 3, tower.config.height, tower.config.width_px)
    torch.testing.assert_close(tower(pixels).x, vit.forward_features(pixels), **CLOSE)
    for parameter in tower.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.01)
    assert not vit.load_state_dict(tower.state_dict(), strict=False).unexpected_keys
    torch.testing.assert_close(tower(pixels).x, vit.forward_features(pixels), **CLOSE)


def test_it_has_the_type_and_mode_of_the_other() -> None:
    tower = tower_from_timm(timm_vit(clip=False).double())
    assert tower.pos_embed.dtype == torch.float64 and not tower.training
    assert tower_from_timm(timm_vit(clip=False).train()).training


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"global_pool": "avg"}, 'global_pool="token"'),
        ({"init_values": 1e-5}, r"has layer scale \(blocks\.0\.ls1\.gamma\)"),
        ({"reg_tokens": 2}, "registers.*a plain ViT fits"),
        ({"qk_norm": True}, "norms of queries and keys.*q_norm"),
        ({"act_layer": torch.nn.ReLU}, r"activation ReLU\(\); GELU and QuickGELU"),
        ({"no_embed_class": True}, "pos_embed"),
        ({"class_token": False, "global_pool": ""}, "cls_token"),
    ],
)
def test_what_ours_has_not_is_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        tower_from_timm(timm_vit(clip=False, **more))


def test_what_is_no_vit_is_refused() -> None:
    with pytest.raises(UserError, match=r"Linear is no ViT of timm: it has no patch_embed, .*; a plain ViT fits"):
        tower_from_timm(torch.nn.Linear(2, 2))
