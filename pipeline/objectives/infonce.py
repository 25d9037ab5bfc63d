"""Symmetric contrast of the global batch (CLIP, arXiv 2103.00020, figure 3).

B rows of this process, G rows of all processes, E embedding width.
"""

import torch
from torch import Tensor

from pipeline.objectives.chunked import Keys, OwnPair, chunked_cross_entropy
from pipeline.objectives.gather import gather_with_gradient, rank
from pipeline.precision import at_least_float32


def symmetric_contrast(image_BE: Tensor, text_BE: Tensor, temperature: Tensor, chunk: int) -> Tensor:
    """Mean of both directions' cross entropy, each row against the rows of all processes.

    Args:
        image_BE: Unit features with gradient.
        text_BE: Likewise.
        temperature: Of one element, with gradient.
        chunk: Rows of a direction whose scores are alive at a time (`pipeline.objectives.chunked`).

    Returns:
        Scalar; its mean over processes, differentiated on each of them and averaged as engines do, is loss and gradient
        of the whole batch on one process.
    """
    image_BE, text_BE = at_least_float32(image_BE), at_least_float32(text_BE)
    image_GE, text_GE = gather_with_gradient(image_BE), gather_with_gradient(text_BE)
    match = OwnPair(rank() * len(image_BE))
    with torch.autocast(image_BE.device.type, enabled=False):
        image_to_text = chunked_cross_entropy(image_BE, Keys(text_GE), temperature, match, chunk)
        text_to_image = chunked_cross_entropy(text_BE, Keys(image_GE), temperature, match, chunk)
    return (image_to_text + text_to_image) / 2
