"""What trimmers are told of the other modality, and what stands in where a layer has nothing of it yet."""

from collections.abc import Sequence

from pipeline.models.schedule import Step


def guides_in_words(schedule: Sequence[Step]) -> str:
    """One line: for the layers of each part and stream, whose CLS the trimmers look at beside their own.

    Args:
        schedule: Of a backbone.
    """
    layers: dict[tuple[str, str, str], list[int]] = {}
    for step in schedule:
        for advance in step.advances:
            layers.setdefault((advance.part or step.part, advance.stream, advance.guide), []).append(step.layer + 1)
    return "; ".join(_in_words(*names, numbers) for names, numbers in layers.items())


def _in_words(part: str, stream: str, guide: str, layers: list[int]) -> str:
    numbers = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"
    where = f"trimmers of the {stream} in {part} {numbers}"
    if guide == stream:
        return f"{where} know nothing of the other modality yet, so the {stream}'s own CLS is used in its place"
    return f"{where} look at the {guide}'s CLS"
