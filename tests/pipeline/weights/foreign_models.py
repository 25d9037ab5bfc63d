"""Small models of timm and transformers with random weights."""

from pathlib import Path
from typing import Any

import torch

from pipeline.models.config import ModelConfig
from pipeline.models.text import TextConfig
from pipeline.models.vision import VisionConfig
from pipeline.weights.reading import Foreign
from tests.pipeline.small import WORDS

END = 19  # the last word of the vocabulary, as in CLIP's


def hf_clip(dtype: torch.dtype, seed: int = 0) -> Any:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    layers: dict[str, Any] = {"num_hidden_layers": 2, "intermediate_size": 40, "initializer_range": 0.3}
    config = CLIPConfig(
        vision_config={**layers, "hidden_size": 24, "num_attention_heads": 3, "image_size": 32, "patch_size": 8},
        text_config={
            **layers, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": END + 1, "max_position_embeddings": 9,
            "eos_token_id": END, "bos_token_id": END - 1, "pad_token_id": 1,
        },
        projection_dim=12, initializer_factor=5.0,
    )  # fmt: skip
    return CLIPModel(config).to(dtype).eval()


def clip_config(side: int = 32, depth: int = 2) -> ModelConfig:
    return ModelConfig(
        backbone="clip",
        vision=VisionConfig(
            height=side, width_px=side, patch=8, width=24, depth=depth, heads=3, mlp_ratio=40 / 24, eps=1e-5,
            activation="quick_gelu", pre_norm=True, patch_bias=False,
        ),
        text=TextConfig(
            vocab_size=END + 1, width=16, text_layers=2, fusion_layers=0, heads=2, hidden=40, max_positions=9,
            eps=1e-5, activation="quick_gelu", type_rows=0,
        ),
        embed=12,
    )  # fmt: skip


def foreign_hf(model: Any) -> Foreign:
    return Foreign(model.state_dict(), model.config.to_dict(), Path("clip"))


def timm_vit(clip: bool, quick: bool = False, **more: Any) -> Any:
    from timm.layers import QuickGELU
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    own: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    if clip:
        own |= {"pre_norm": True, "norm_layer": torch.nn.LayerNorm}
    if quick:
        own |= {"act_layer": QuickGELU}
    return VisionTransformer(**{**own, **more}).eval()


def save_text_model(kind: str, folder: Path, with_head: bool = False) -> Any:
    import transformers

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 128, "max_position_embeddings": 10, "initializer_range": 0.3,
        "type_vocab_size": 2 if kind == "Bert" else 1, "pad_token_id": 0 if kind == "Bert" else 1,
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**sizes)
    model = getattr(transformers, f"{kind}{'ForMaskedLM' if with_head else 'Model'}")(config).eval()
    model.save_pretrained(folder)
    return model
