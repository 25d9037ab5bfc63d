"""Models from the export folders that training stages leave."""

import contextlib
from collections.abc import Iterator
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
from pipeline.weights.mapping import fill


def load_backbone(folder: Path) -> Backbone:
    """The model of a pre-training stage's export, in evaluation mode.

    Raises:
        UserError: The folder holds something else.
    """
    tensors, described = _load(folder, "backbone", "a pre-trained backbone")
    with _named(folder):
        model = build_model(ModelConfig.from_dict(described.get("model", {})))
        fill(model, tensors)
    return model.eval()


def load_statement_model(folder: Path) -> tuple[StatementModel, dict[str, Any]]:
    """The model of a trimming stage's export, in evaluation mode, and its config.json.

    Raises:
        UserError: The folder holds something else.
    """
    tensors, described = _load(folder, "statement", "a statement model")
    with _named(folder):
        backbone = build_model(ModelConfig.from_dict(described.get("model", {})))
        model = StatementModel(backbone, _trimmers(described))
        fill(model, tensors)
    return model.eval(), described


def _trimmers(described: dict[str, Any]) -> TrimmerConfig | None:
    try:
        return None if described["trimmers"] is None else TrimmerConfig(**described["trimmers"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"its config.json does not tell the sizes of its trimmers ({error}); export it again"
        ) from error


@contextlib.contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Puts the folder's name before what is wrong with it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error


def _load(folder: Path, kind: str, wanted: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, described = load_weights(folder)
    if described.get("kind") != kind:
        raise UserError(f"{folder} holds a {described.get('kind')!r} model; {wanted} is wanted")
    return tensors, described
