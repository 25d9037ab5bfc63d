"""Small models and batches for tests."""

from typing import Any

import torch

from pipeline.data.batch import ImageTextBatch
from pipeline.models.backbone import Backbone
from pipeline.models.build import build_model
from pipeline.models.config import BackboneName, FusionConfig, ModelConfig
from pipeline.models.text import TextConfig
from pipeline.models.vision import VisionConfig

OTHER_BACKBONES: dict[str, dict[str, Any]] = {
    "blip": {"text.fusion_layers": 0, "text.type_rows": 0},
    "meter": {"text.type_rows": 1, "text.pad_id": 0, "text.max_positions": 25, "fusion": {"width": 16, "heads": 2}},
    "clip": {"text.fusion_layers": 0, "text.type_rows": 0, "text.width": 16},
}
"""What makes a small ALBEF's `model` section one of another backbone."""
WORDS = 50
MAX_TOKENS = 9


def small_config(depth: int = 4, backbone: BackboneName = "albef") -> ModelConfig:
    vision = VisionConfig(height=32, width_px=32, patch=8, width=32, depth=depth, heads=4)
    text = TextConfig(
        vocab_size=WORDS, width=32, text_layers=2, heads=4, max_positions=MAX_TOKENS + 1, dropout=0.0,
        fusion_layers=2 if backbone in ("albef", "meter") else 0, pad_id=0 if backbone == "meter" else None,
        type_rows={"albef": 2, "blip": 0, "meter": 1, "clip": 0}[backbone],
    )  # fmt: skip
    fusion = FusionConfig(width=24, heads=4)
    return ModelConfig(backbone=backbone, vision=vision, text=text, fusion=fusion, embed=16)


def small_model(backbone: BackboneName, seed: int = 0, depth: int = 4) -> Backbone:
    torch.manual_seed(seed)
    return build_model(small_config(depth, backbone))


def small_albef(seed: int = 0, depth: int = 4) -> Backbone:
    return small_model("albef", seed, depth)


def small_batch(size: int = 4, seed: int = 0, labels: int = 2) -> ImageTextBatch:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, MAX_TOKENS + 1, (size, 1), generator=generator)
    mask = torch.arange(MAX_TOKENS) < lengths
    ids = torch.randint(5, WORDS, (size, MAX_TOKENS), generator=generator) * mask
    names = [f"k{seed}-{row}" for row in range(size)]
    return ImageTextBatch(
        pixels=torch.randint(0, 256, (size, 3, 32, 32), generator=generator, dtype=torch.uint8),
        token_ids=ids, token_mask=mask, labels=torch.randint(0, labels, (size,), generator=generator),
        sample_ids=torch.arange(size) + 1000 * seed, draw_seeds=torch.arange(size) + 1000 * seed,
        texts=names, captions=[[name] for name in names], keys=names, groups=names, clusters=names, skipped=[],
    )  # fmt: skip


def scale(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 -> about [-1, 1] in torch's default type."""
    return pixels.to(torch.get_default_dtype()) / 127.5 - 1
