"""Names of the official METER (CLIP-ViT and RoBERTa), pre-trained or fine-tuned.

Heads of downstream tasks come under ``heads.``: ``vqa``, ``snli`` and ``nlvr2`` are `TaskClassifier`s, ``rank`` is
linear.

D width of the fusion layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pipeline.models.linear import Linear
from pipeline.models.meter import IMAGE_TYPES, Meter
from pipeline.weights.clip import openai_vision_rules
from pipeline.weights.described import check_switches
from pipeline.weights.loaded import MATCHING
from pipeline.weights.mapping import Imported, NameMap, convert, drop, fill, import_tensors, rename
from pipeline.weights.positions import fit_positions
from pipeline.weights.sizes import POSITIONS

_OPTIONAL = {"itm_score.": MATCHING, "mlm_score.": "mlm_head"}
"""Heads that fine-tuned files lack: their prefixes and our names."""


def _every_type(types_RD: Tensor) -> Tensor:
    """A row for the text and for both images of a pair.

    Files from before NLVR2 have none for the second image, which then begins as the first.
    """
    missing = 1 + IMAGE_TYPES - len(types_RD)
    return torch.cat([types_RD, types_RD[1:2].expand(missing, -1)]) if missing == 1 else types_RD


METER = NameMap(
    (
        *openai_vision_rules("vit_model.visual.", "visual_encoder."),
        # Of CLIP's text side, which METER never runs.
        drop("vit_model.positional_embedding"),
        drop("vit_model.ln_final.{p}"),
        # A counter, and a pooler that METER does not ask.
        drop("text_transformer.embeddings.position_ids"),
        drop("text_transformer.pooler.dense.{p}"),
        rename("text_transformer.{rest}", "text_encoder.{rest}"),
        rename("cross_modal_{stream:text|image}_transform.{p}", "{stream:text|image}_transform.{p}"),
        rename("cross_modal_{stream:text|image}_layers.{rest}", "{stream:text|image}_layers.{rest}"),
        rename("cross_modal_{stream:text|image}_pooler.{rest}", "{stream:text|image}_pooler.{rest}"),
        convert("token_type_embeddings.weight", "token_type_embeddings.weight", _every_type, lambda t: t),
        rename("mlm_score.{rest}", "mlm_head.{rest}"),
        rename("itm_score.fc.{p}", "itm_head.{p}"),
        rename("{task:vqa|snli|nlvr2}_classifier.{rest}", "heads.{task:vqa|snli|nlvr2}.{rest}"),
        rename("rank_output.{p}", "heads.rank.{p}"),
    ),
    "METER",
)


@dataclass(frozen=True)
class MeterHeads:
    """What a METER file holds beside the backbone.

    Attributes:
        tensors: By task (``vqa``, ``snli``, ``nlvr2``, ``rank``), then by the head's own names.
        dropped: Their names that were left out on purpose.
    """

    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)


def load_meter(model: Meter, foreign: Mapping[str, Tensor]) -> MeterHeads:
    """Fills a METER; its position table is resized to the model's pictures.

    Args:
        model: Gets the weights. Heads of pre-training that the file lacks stay as they are.
        foreign: By official names.

    Returns:
        The heads of downstream tasks.

    Raises:
        UserError: Names or shapes do not fit.
    """
    return load_meter_parts(model, foreign, [f"{head}." for head in lacking_heads(foreign)])


def lacking_heads(foreign: Mapping[str, Tensor]) -> list[str]:
    """Heads of pre-training, by our names, of which a file has nothing: one may be missing, but not a part of one."""
    return [ours for theirs, ours in _OPTIONAL.items() if not any(name.startswith(theirs) for name in foreign)]


def match_by_rank(model: Meter, rank: Mapping[str, Tensor]) -> None:
    """Makes matching's head that of a model fine-tuned for retrieval, whose score of a match is what ``rank`` says.

    METER learns that head from a copy of matching's score of a match, beside the pre-trained one, which stays.

    Args:
        model: Gets the head.
        rank: Weight (1, D) and bias (1,).

    Raises:
        UserError: A part is missing or of another shape.
    """
    own = model.itm_head
    head = Linear(own.in_features, 1, device=own.weight.device, dtype=own.weight.dtype)
    fill(nn.ModuleDict({"rank_output": head}), {f"rank_output.{name}": each for name, each in rank.items()})
    with torch.no_grad():
        for ours, each in zip((own.weight, own.bias), (head.weight, head.bias), strict=True):
            ours.copy_(torch.cat([torch.zeros_like(each), each]))


def load_meter_parts(model: Meter, foreign: Mapping[str, Tensor], allow_missing: Sequence[str]) -> MeterHeads:
    """As `load_meter`; whatever begins with one of `allow_missing` may be missing and stays as it is."""
    imported = import_tensors(foreign, METER)
    backbone, heads = _parted(imported)
    if POSITIONS in backbone:
        check_switches(model.config.vision, backbone, "visual_encoder.")
    backbone = fit_positions(backbone, POSITIONS, model.config.vision.grid)
    fill(model, backbone, allow_missing, imported.unknown)
    return MeterHeads(heads, imported.dropped)


def _parted(imported: Imported) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """The backbone's tensors and those of each head."""
    backbone: dict[str, Tensor] = {}
    heads: dict[str, dict[str, Tensor]] = {}
    for name, tensor in imported.tensors.items():
        if name.startswith("heads."):
            task, rest = name.removeprefix("heads.").split(".", 1)
            heads.setdefault(task, {})[rest] = tensor
        else:
            backbone[name] = tensor
    return backbone, heads
