"""Parts of run folders in the format that the stages write."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from pipeline.measure.bootstrap import Series
from pipeline.measure.outcomes import Outcomes, outcomes_file, write_outcomes

GROUPS = {
    "vision": ("vision", "image"),
    "text": ("text", "text"),
    "msa": ("vision", "image"),
    "mca": ("fusion", "text"),
}


def save(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def draw_picture(path: Path, size: tuple[int, int] = (96, 96)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", size, (214, 208, 196))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((8, 12, 36, 40), fill=(200, 60, 40))
    pen.rectangle((56, 50, 84, 78), fill=(40, 90, 180))
    pen.polygon([(60, 34), (72, 10), (84, 34)], fill=(60, 140, 70))
    picture.save(path)


def instances(run: Path, target: float, gmacs: list[float]) -> dict[str, Any]:
    """What evaluation saw of four instances: cost, and what two layers keep of each group."""
    folder, name = run / "stages" / "evaluate" / "instances", f"trim-statement-{target:.1f}x-test"
    share = 1 / target
    spread = {"mean": share, "std": 0.1, "low": 0.8 * share, "lower": 0.9 * share, "middle": share, "upper": share}
    kept = [
        {"part": part, "layer": layer, "stream": stream, "group": group, **spread, "high": min(1.0, 1.1 * share)}
        for group, (part, stream) in GROUPS.items()
        for layer in range(2)
    ]
    shown = {}
    for kind, cost in (("cheapest", min(gmacs)), ("dearest", max(gmacs))):
        draw_picture(folder / f"{name}-{kind}-0.png")
        about = {"key": "k0", "text": f"the {kind} one is <red>", "said": "true", "right": "false", "gmacs": cost}
        shown[kind] = [{"image": f"{name}-{kind}-0.png", "width": 96, "height": 96, **about}]
    full = {"vision": 0.009, "text": 0.002, "fusion": 0.0014, "head": 0.0}
    modules = {module: cost * share for module, cost in full.items()} | ({"trimmers": 0.0001} if target > 1 else {})
    method = "smarttrim" if target > 1 else "full"
    value = {
        "stage": f"trim-statement-{target:.1f}x", "method": method, "target": target, "task": "statement",
        "split": "test", "samples": 4, "full_gmacs": 0.0124, "gmacs": gmacs, "modules": modules, "full_modules": full,
        "kept": kept if target > 1 else [], **shown,
    }  # fmt: skip
    save(folder / f"{name}.json", value)
    return value


def outcomes(run: Path, model: str, split: str, right: Mapping[str, Sequence[float]], data: str = "d0") -> None:
    """What became of each instance, two to a group, by metric."""
    told = []
    for metric, values in right.items():
        names, groups = [f"k{n}" for n in range(len(values))], [f"g{n // 2}" for n in range(len(values))]
        told.append(Outcomes(metric=metric, series=(Series(names=names, values=values, groups=groups),)))
    write_outcomes(outcomes_file(run / "stages" / f"evaluate-{model}", model, split), data, told)
