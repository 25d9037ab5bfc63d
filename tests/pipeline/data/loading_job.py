"""A process that loads, and whose worker, or which itself, is killed: see test_parcels.py.

python -m tests.pipeline.data.loading_job thread|killed|spawn SPLIT TOKENIZER
"""

import hashlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

from pipeline.data.loader import LoaderConfig, StepLoader, train_loader
from pipeline.data.text import Tokenizer
from pipeline.process import Process

CONFIG = LoaderConfig(height=12, width=16, streams=2, window=4, workers=1, max_tokens=512)
"""So many tokens that the batches ahead fill more than a pipe."""
BATCH = 32


def loader_of(split: str, tokenizer: str, workers: int = 1) -> StepLoader:
    config = LoaderConfig(**{**vars(CONFIG), "workers": workers})
    return train_loader(
        [(split, 1.0)], text="captions", unit="pair", config=config, tokenizer=Tokenizer.load(Path(tokenizer)), seed=0,
        global_batch=BATCH, process=Process(), steps=12,
    )  # fmt: skip


def begun(loader: StepLoader) -> tuple[object, int]:
    """An iterator whose worker is as far ahead as it may be, and the worker."""
    batches = iter(loader)
    next(batches)
    time.sleep(1.0)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    return batches, worker.pid


def lose_worker(loader: StepLoader) -> None:
    """Kills the worker and says what the loader says of that, and when."""
    batches, worker = begun(loader)
    os.kill(worker, signal.SIGKILL)
    begin = time.monotonic()
    try:
        for _ in batches:  # type: ignore[attr-defined]
            pass
    except Exception as error:
        print(f"{type(error).__name__}\n{error}\n{time.monotonic() - begin:.1f}", flush=True)


def main(way: str, split: str, tokenizer: str) -> None:
    if way == "spawn":
        multiprocessing.set_start_method("spawn")
        for workers in (0, 2):
            found = [(batch.keys, batch.pixels.numpy().tobytes()) for batch in loader_of(split, tokenizer, workers)]
            print(hashlib.sha256(repr(found).encode()).hexdigest(), flush=True)
    elif way == "thread":  # as Ray Train runs a training; signals reach the main thread only
        thread = threading.Thread(target=lose_worker, args=(loader_of(split, tokenizer),), daemon=True)
        thread.start()
        thread.join(30)
    else:
        _, worker = begun(loader_of(split, tokenizer))
        print(worker, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
