"""Tensors on disk as safetensors: no pickles, and a full disk says so."""

import re
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from data_prep.errors import UserError

_OS_ERROR = re.compile(r"(.*)\(os error (\d+)\)")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes tensors of any device and layout; those that share memory are written one by one.

    Raises:
        OSError: With its number, which safetensors itself hides in the text of an error of its own.
    """
    # safetensors makes the file for its owner alone; whoever may read the other files of a run may read this one.
    path.touch()
    mode = path.stat().st_mode
    try:
        safetensors.torch.save_file(_plain(tensors), path, metadata=metadata)
        path.chmod(mode)
    except safetensors.SafetensorError as error:
        if match := _OS_ERROR.search(str(error)):
            raise OSError(int(match[2]), match[1].strip(), str(path)) from error
        raise


def read_tensors(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Reads a whole file.

    Raises:
        UserError: It is not there, or not a safetensors file.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; give the folder that holds it, or make it again")
    try:
        return safetensors.torch.load_file(path, device=device)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}); make it again") from error


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors that share no memory, as safetensors wants them."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().to("cpu").contiguous()
        if value.untyped_storage().data_ptr() in seen:
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        plain[name] = value
    return plain
