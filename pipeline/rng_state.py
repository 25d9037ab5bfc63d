"""The states of a process's random generators, as tensors."""

import random

import numpy as np
import torch
from torch import Tensor

from pipeline.process import Process


def rng_state(process: Process) -> dict[str, Tensor]:
    """The states of torch's, numpy's and Python's generators."""
    version, words, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    state = {
        "torch": torch.get_rng_state(),
        "numpy_words": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
        "numpy_rest": torch.tensor(
            [numpy_state["state"]["pos"], numpy_state["has_gauss"], numpy_state["gauss"]], dtype=torch.float64
        ),
        "python_words": torch.tensor([version, *words]),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
    }
    if process.torch_device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(process.torch_device)
    return state


def set_rng_state(state: dict[str, Tensor], process: Process) -> None:
    """Takes what `rng_state` gave; a GPU's where there is one in both."""
    torch.set_rng_state(state["torch"])
    position, has_gauss, gauss = state["numpy_rest"].tolist()
    words = state["numpy_words"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, int(position), int(has_gauss), gauss))
    version, *python_words = state["python_words"].tolist()
    spare = state["python_gauss"].tolist()
    random.setstate((version, tuple(python_words), spare[0] if spare else None))
    if "cuda" in state and process.torch_device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], process.torch_device)


def seed_everything(seed: int, part: int) -> None:
    """Seed torch, numpy and Python for one of several parts of a run, independently of each other."""
    mixed = int(np.random.SeedSequence([seed, part]).generate_state(1)[0])
    torch.manual_seed(mixed)
    np.random.seed(mixed)
    random.seed(mixed)
