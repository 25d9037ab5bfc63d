"""In which order heads go that are not scored for each instance: by chance, or by the gradient (Michel et al. 2019).

I_h = E_x |A_h^T ∂L/∂A_h| with A_h the head's context and L the loss on the model's own predictions. A factor on a
head's context has that product as its gradient, so a mask of ones is all it takes.

B batch, H heads.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

from pipeline.data.seeds import generator
from pipeline.models.schedule import InBlock, Step, Streams, site
from pipeline.tasks.classification import ClassificationModel
from pipeline.trimming.trimmers import Trimmers, block_size

Order = Literal["head_random", "grad_layer", "grad_all"]

_GOLDEN = 0.6180339887498949


class HeadProbe:
    """An intervention that puts a factor of one on every head's context."""

    def __init__(self) -> None:
        self.factors: dict[str, Tensor] = {}

    def before(self, step: Step, streams: Streams) -> tuple[Streams, Mapping[str, InBlock]]:
        """Leave word for every block."""
        wishes = {}
        for advance in step.advances:
            x, name = streams[advance.stream].x, site(step, advance)
            ones = x.new_ones(len(x), block_size(advance)[1])
            own = self.factors[f"{name}/self"] = ones.clone().requires_grad_()
            cross = None
            if advance.sources:
                cross = self.factors[f"{name}/cross"] = ones.clone().requires_grad_()
            wishes[advance.stream] = InBlock(own, cross)
        return streams, wishes


def head_importance(model: ClassificationModel, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Tensor]:
    """I_h of each attention's heads, (H,), by site and kind of attention.

    Args:
        model: Fine-tuned, untrimmed.
        batches: Normalised pixels, token ids and their mask; labels are not looked at.
    """
    total: dict[str, Tensor] = {}
    for pixels, ids_BL, mask_BL in batches:
        probe = HeadProbe()
        loss = model.classes.own_loss(model.classify(pixels, ids_BL, mask_BL, [probe]))
        factors = list(probe.factors.values())
        # Where fusion begins from the words, the text that is encoded alone has no part in a full model's answer.
        gradients = torch.autograd.grad(loss, factors, allow_unused=True, materialize_grads=True)
        for name, gradient_BH in zip(probe.factors, gradients, strict=True):
            total[name] = total.get(name, torch.zeros(())) + gradient_BH.abs().sum(0).cpu()
    return total


def order_heads(trimmers: Trimmers, order: Order, seed: int, importance: Mapping[str, Tensor]) -> None:
    """Settles which heads go first.

    Args:
        trimmers: With ranked heads, changed in place.
        order: ``head_random`` and ``grad_layer`` take the same share from each attention, ``grad_all`` from all.
        seed: Of ``head_random``.
        importance: Of the others.
    """
    modules = dict(trimmers.ranked())
    if order == "head_random":
        draw = generator(seed, "head_random")
        importance = {name: torch.from_numpy(draw.random(len(heads.rank_H))) for name, heads in modules.items()}
    own = {name: importance[name].double() for name in modules}
    ranks = _over_all(own) if order == "grad_all" else dict(_in_each(own))
    for name, heads in modules.items():
        heads.rank_H.copy_(ranks[name])


def _in_each(importance: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Ranks in each attention.

    An attention of four heads keeps a multiple of a quarter; so that not all lose one at the same share, each begins
    at another fraction, and together they keep what the share says.
    """
    for number, (name, of_H) in enumerate(importance.items()):
        begin = ((number + 1) * _GOLDEN) % 1
        yield name, (_places(of_H) + begin) / len(of_H)


def _over_all(importance: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Ranks among all heads of the model."""
    every = torch.cat(list(importance.values()))
    parts = ((_places(every) + 0.5) / len(every)).split([len(of_H) for of_H in importance.values()])
    return dict(zip(importance, parts, strict=True))


def _places(importance: Tensor) -> Tensor:
    """0 for the most important one."""
    return importance.argsort(descending=True, stable=True).argsort(stable=True)
