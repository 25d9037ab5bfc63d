"""One rank of a job that loads and does nothing else, to be killed: see test_restarts.py.

    python -m tests.pipeline.data.restart_job SPLIT TOKENIZER OUT STORE RANK WORLD_SIZE WORKERS STEPS

It goes on behind the last step that OUT/done names, meets the other ranks after each step as a training step does, and
appends each batch's content to OUT/rank-R.jsonl.
"""

import hashlib
import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

from data_prep.files import write_atomic
from pipeline.data.batch import ImageTextBatch
from pipeline.data.loader import LoaderConfig, StepLoader, train_loader
from pipeline.data.randaugment import RandAugmentConfig
from pipeline.data.text import Tokenizer
from pipeline.process import Process

BATCH = 48
CONFIG = LoaderConfig(
    height=32, width=32, crop_scale=(0.3, 1.0), flip=True, randaugment=RandAugmentConfig(), streams=12, window=64,
    max_tokens=12, max_bad_share=0.5,
)  # fmt: skip
STEP_SECONDS = 0.02
"""Of what stands for a training step, so that a kill finds loaders ahead, waiting, and at work."""


@dataclass(frozen=True)
class Job:
    split: Path
    tokenizer: Path
    out: Path
    store: Path
    process: Process
    workers: int
    steps: int


def loader(
    split: Path, tokenizer: Tokenizer, process: Process, *, workers: int, steps: int, start: int, out: Path | None
) -> StepLoader:
    return train_loader(
        [(split, 1.0)], text="captions", unit="pair", config=replace(CONFIG, workers=workers), tokenizer=tokenizer,
        seed=5, global_batch=BATCH, process=process, steps=steps, start_step=start, quarantine=out,
    )  # fmt: skip


def content(batch: ImageTextBatch) -> list[list[str]]:
    """A sample is its key and a hash of everything that training sees of it."""
    parts = zip(batch.keys, batch.pixels.numpy(), batch.token_ids, batch.texts, batch.draw_seeds.tolist(), strict=True)
    return [
        [key, hashlib.sha256(pixels.tobytes() + ids.numpy().tobytes() + f"{text} {draws}".encode()).hexdigest()]
        for key, pixels, ids, text, draws in parts
    ]


def steps_done(out: Path) -> int:
    path = out / "done"
    return int(path.read_text()) if path.exists() else 0


def main(job: Job) -> None:
    start, process = steps_done(job.out), job.process
    store = dist.FileStore(str(job.store), process.world_size)
    dist.init_process_group("gloo", store=store, rank=process.rank, world_size=process.world_size)
    tokenizer = Tokenizer.load(job.tokenizer)
    batches = loader(
        job.split, tokenizer, process, workers=job.workers, steps=job.steps, start=start, out=job.out / "quarantine"
    )
    with (job.out / f"rank-{process.rank}.jsonl").open("a") as journal:
        journal.write("\n")  # ends a line that a kill cut short
        for step, batch in enumerate(batches, start=start):
            line = {"step": step, "rank": process.rank, "world": process.world_size, "samples": content(batch)}
            print(json.dumps(line), file=journal, flush=True)
            time.sleep(STEP_SECONDS)
            agreed = torch.tensor([step])
            dist.all_reduce(agreed, dist.ReduceOp.MAX)
            assert agreed.item() == step, "the ranks are at different steps"
            if process.is_main:
                write_atomic(job.out / "done", str(step + 1).encode())
    dist.barrier()


if __name__ == "__main__":
    split, tokenizer, out, store, rank, world, workers, steps = sys.argv[1:]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    main(
        Job(
            Path(split),
            Path(tokenizer),
            Path(out),
            Path(store),
            Process(rank=int(rank), world_size=int(world)),
            int(workers),
            int(steps),
        )
    )
