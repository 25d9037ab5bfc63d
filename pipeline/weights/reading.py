"""Files of foreign weights: tensors only, whatever wraps them."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from torch import Tensor

from data_prep.errors import UserError
from data_prep.files import read_json
from pipeline.tensor_files import read_tensors

_PICKLES = (".pth", ".pt", ".ckpt", ".bin")
_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
_WRAPPERS = ("model", "state_dict")
_CONFIG = "config.json"


@dataclass(frozen=True)
class Foreign:
    """Weights as someone else stored them.

    Attributes:
        tensors: By their names.
        config: The config.json of a folder; None for a single file.
        path: Where they were.
    """

    tensors: dict[str, Tensor]
    config: dict[str, Any] | None
    path: Path


def read_foreign(path: Path) -> Foreign:
    """Reads a .safetensors file, a .pth, .pt, .ckpt or .bin file, or a Hugging Face folder, onto the CPU.

    Raises:
        UserError: It is not there, of another kind, damaged, or holds more than tensors and plain values.
    """
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".safetensors":
        return Foreign(read_tensors(path), None, path)
    if not path.suffix and not path.exists():
        raise UserError(f"there is no file or folder {path}")
    if path.suffix not in _PICKLES:
        raise UserError(
            f"{path} is not a file of weights; give a folder, a .safetensors or one of {', '.join(_PICKLES)}"
        )
    return Foreign(_read_pickle(path), None, path)


def _read_folder(folder: Path) -> Foreign:
    found = [folder / name for name in _FOLDER_FILES if (folder / name).is_file()]
    if not found or not (folder / _CONFIG).is_file():
        raise UserError(f"{folder} needs {_CONFIG} and {' or '.join(_FOLDER_FILES)} in one piece; give such a folder")
    config = read_json(folder / _CONFIG)
    if not isinstance(config, dict):
        raise UserError(f"{folder / _CONFIG} holds no JSON object; give a folder of transformers")
    return Foreign(read_foreign(found[0]).tensors, config, folder)


def _read_pickle(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path} is missing; give the file that holds the weights")
    try:
        # Tensors and plain values only: a pickle can run any program.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, BadZipFile, ValueError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise UserError(
            f"{path} cannot be read as tensors ({reason[0]}); it is damaged, or it holds objects of other programs, "
            "which are never loaded: save its state dict alone, best as .safetensors"
        ) from error
    return _unwrapped(content, path)


def _unwrapped(content: object, path: Path) -> dict[str, Tensor]:
    """The state dict, under a key or bare."""
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds no state dict; give a file with tensors by name, bare or under {_WRAPPERS}")
    strange = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise UserError(f"{path} holds more than tensors: {', '.join(strange[:5])}; save its state dict alone")
    return {str(name): value for name, value in content.items()}
