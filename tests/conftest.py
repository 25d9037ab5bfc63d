"""What all tests share."""

import os

import pytest
from hypothesis import settings

# Tests run side by side with others on few cores, and in processes of their own: one thread each is fastest.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# The same examples every time, and no deadline: a busy machine is no failure.
settings.register_profile("trimline", deadline=None, derandomize=True)
settings.load_profile("trimline")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees torchrun's variables or a cluster of the machine it runs on."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
