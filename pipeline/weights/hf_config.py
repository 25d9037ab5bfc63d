"""What transformers' config.json files say alike."""

from typing import Any

from pipeline.models.vision import VisionConfig


def vision_section(vision: VisionConfig) -> dict[str, Any]:
    """The sizes of a vision tower."""
    return {
        "hidden_size": vision.width,
        "intermediate_size": int(vision.width * vision.mlp_ratio),
        "num_hidden_layers": vision.depth,
        "num_attention_heads": vision.heads,
        "image_size": vision.height,
        "patch_size": vision.patch,
        "hidden_act": vision.activation,
        "layer_norm_eps": vision.eps,
    }
