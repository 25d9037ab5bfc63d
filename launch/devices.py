"""Which device a command runs on."""

import torch

from data_prep.errors import UserError


def device_of(given: str | None) -> str:
    """``cpu`` or ``cuda``: what is given, else a GPU if there is one.

    Raises:
        UserError: A GPU is asked for that torch cannot use.
    """
    where = given or ("cuda" if torch.cuda.is_available() else "cpu")
    if where == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no GPU that torch can use; leave it out, or give cpu")
    return where
