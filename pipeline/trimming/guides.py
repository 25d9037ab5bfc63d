"""What trimmers are told of the other modality, and what stands in where a layer has nothing of it yet."""

from collections.abc import Collection, Sequence

from pipeline.models.schedule import Step, site

_TRIMMED = {"source": "question"}
_SEEN = {"pair": "the mean of both images' CLS", "decoder": "the state of its first token"}


def guides_in_words(schedule: Sequence[Step], sites: Collection[str] | None = None) -> str:
    """One line: for the layers of each part and what they trim, whose CLS the trimmers look at beside their own.

    Layers are counted from 0, as in reports and keys.

    Args:
        schedule: Of a backbone.
        sites: Where trimmers are; None for everywhere.
    """
    layers: dict[tuple[str, str, str], list[int]] = {}
    for step in schedule:
        for advance in step.advances:
            if sites is None or site(step, advance) in sites:
                guide = "decoder" if advance.tells_of else advance.guide
                layers.setdefault((advance.part or step.part, advance.trimmed, guide), []).append(step.layer)
    return "; ".join(_in_words(*names, numbers) for names, numbers in layers.items())


def _in_words(part: str, trimmed: str, guide: str, layers: list[int]) -> str:
    numbers = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"
    where = f"trimmers of the {_TRIMMED.get(trimmed, trimmed)} in {part} {numbers}"
    if guide == trimmed:
        return f"{where} know nothing of the other modality yet, so the {trimmed}'s own CLS is used in its place"
    seen = _SEEN.get(guide, f"the {guide}'s CLS")
    return f"{where} look at {seen}"
