"""Symmetric contrast of the global batch (CLIP, arXiv 2103.00020, figure 3).

B rows of this process, G rows of all processes, E embedding width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.objectives.gather import gather_with_gradient, rank
from pipeline.precision import at_least_float32


def symmetric_contrast(image_BE: Tensor, text_BE: Tensor, temperature: Tensor) -> Tensor:
    """Mean of both directions' cross entropy, each row against the rows of all processes.

    Args:
        image_BE: Unit features with gradient.
        text_BE: Likewise.
        temperature: Scalar with gradient.

    Returns:
        Scalar; its mean over processes, differentiated on each of them and averaged as engines do, is loss and gradient
        of the whole batch on one process.
    """
    image_BE, text_BE = at_least_float32(image_BE), at_least_float32(text_BE)
    image_GE, text_GE = gather_with_gradient(image_BE), gather_with_gradient(text_BE)
    match_B = torch.arange(len(image_BE), device=image_BE.device) + rank() * len(image_BE)
    with torch.autocast(image_BE.device.type, enabled=False):
        image_to_text = F.cross_entropy(image_BE @ text_GE.T / temperature, match_B)
        text_to_image = F.cross_entropy(text_BE @ image_GE.T / temperature, match_B)
    return (image_to_text + text_to_image) / 2
