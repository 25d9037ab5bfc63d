"""Every number of a configuration that nothing could work with is refused by its name."""

import math
from typing import Any

import pytest

from data_prep.errors import UserError
from pipeline.evaluation.config import EvaluateConfig
from pipeline.loop_config import LoopConfig
from pipeline.models.config import ModelConfig
from pipeline.models.text import TextConfig
from pipeline.models.vision import VisionConfig
from pipeline.pruning.elip import ElipConfig
from pipeline.tasks.classification import SmartTrimConfig
from pipeline.tasks.pretraining import ObjectiveConfig
from pipeline.trim_config import TrimConfig
from pipeline.trimming.curriculum import CurriculumConfig
from pipeline.trimming.trimmers import TrimmerConfig

LOOP = LoopConfig(samples=1, global_batch=1)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        *((VisionConfig, {name: 0}) for name in ("height", "patch", "width", "depth", "heads")),
        *((TextConfig, {name: 0}) for name in ("width", "heads", "text_layers", "max_positions")),
        *((VisionConfig, {"mlp_ratio": ratio}) for ratio in (math.nan, math.inf, 0.001)),
        (TextConfig, {"dropout": 1.0}),
        (TextConfig, {"dropout": -0.1}),
        (TextConfig, {"hidden": -1}),
        (ModelConfig, {"temperature": 0.0}),
        (ModelConfig, {"temperature": 0.6}),
        (ModelConfig, {"embed": 0}),
        (ObjectiveConfig, {"queue": -1}),
        (ObjectiveConfig, {"temperature_lr": -1.0}),
        (ObjectiveConfig, {"momentum": 1.5}),
        *((ElipConfig, {"ratios": (first, 0.5, 0.2)}) for first in (math.nan, math.inf, 0.4)),
        (ElipConfig, {"ratios": (0.9, math.nan, 0.2)}),
        (ElipConfig, {"depths": (2, 0, 6, 4)}),
        (ElipConfig, {"depths": (12,), "ratios": ()}),
        (ElipConfig, {"depths": (), "ratios": ()}),
        (TrimConfig, {"loop": LOOP, "head_scale": 0.0}),
        (TrimmerConfig, {"noise_ramp": 1.5}),
        (TrimmerConfig, {"noise_fade": -0.1}),
        (TrimmerConfig, {"last_std": 0.0}),
        (CurriculumConfig, {"gain": -0.1}),
        (SmartTrimConfig, {"groups": ()}),
        (SmartTrimConfig, {"groups": ("msa", "msa")}),
        (EvaluateConfig, {"pictures": -1}),
        (EvaluateConfig, {"rerank": -1}),
        (LoopConfig, {"samples": 1, "global_batch": 1, "checkpoint_seconds": math.nan}),
    ],
)
def test_what_cannot_be_is_refused_by_name(kind: Any, given: dict[str, Any]) -> None:
    name = list(given)[-1 if kind in (LoopConfig, TrimConfig) else 0]
    with pytest.raises(UserError, match=rf"\w+\.{name}="):
        kind(**given)


def test_elip_without_merging_counts_no_merged_token() -> None:
    """Of 10 patches 9 stay, then 9 of 9: with a merged token there were 10 to choose from."""
    ratios = {"depths": (1, 1, 1), "ratios": (0.95, 0.9)}
    ElipConfig(**ratios).check(3, 10)
    with pytest.raises(UserError, match="keeps 9 of 9 tokens"):
        ElipConfig(merge=False, **ratios).check(3, 10)
