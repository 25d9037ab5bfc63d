"""Models from the export folders that training stages leave."""

from pathlib import Path
from typing import Any

from torch import Tensor

from data_prep.errors import UserError
from pipeline.checkpoint import load_weights
from pipeline.models.backbone import Backbone
from pipeline.models.build import build_model
from pipeline.models.config import ModelConfig
from pipeline.tasks.statements import StatementModel
from pipeline.trimming.trimmers import TrimmerConfig


def load_backbone(folder: Path) -> Backbone:
    """The model of a pre-training stage's export, in evaluation mode.

    Raises:
        UserError: The folder holds something else.
    """
    tensors, described = _load(folder, "backbone", "a pre-trained backbone")
    model = build_model(ModelConfig.from_dict(described["model"]))
    model.load_state_dict(tensors)
    return model.eval()


def load_statement_model(folder: Path) -> tuple[StatementModel, dict[str, Any]]:
    """The model of a trimming stage's export, in evaluation mode, and its config.json.

    Raises:
        UserError: The folder holds something else.
    """
    tensors, described = _load(folder, "statement", "a statement model")
    trimmers = None if described["trimmers"] is None else TrimmerConfig(**described["trimmers"])
    model = StatementModel(build_model(ModelConfig.from_dict(described["model"])), trimmers)
    model.load_state_dict(tensors)
    return model.eval(), described


def _load(folder: Path, kind: str, wanted: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, described = load_weights(folder)
    if described.get("kind") != kind:
        raise UserError(f"{folder} holds a {described.get('kind')!r} model; {wanted} is wanted")
    return tensors, described
