"""Contrast in chunks: value and gradients are those of the definition, on one and two processes, in little memory.

B rows of a process, E embedding width, K keys.
"""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.objectives.infonce import symmetric_contrast
from pipeline.objectives.itc import FeatureQueue, SameImage, contrast
from pipeline.process import Process
from tests.pipeline.distributed import run_ranks

ROWS, WIDTH, QUEUE = 12, 6, 5
IMAGES = torch.tensor([0, 1, 2, 1, 4, 5, 0, 7, 8, 2, 10, 11])
QUEUE_IMAGES = torch.tensor([4, -100, 0, 20, 20])
EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def unit(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(ROWS, WIDTH, dtype=torch.float64, generator=generator), dim=1)


def queue() -> FeatureQueue:
    made = FeatureQueue(WIDTH, QUEUE, torch.Generator().manual_seed(9), torch.device("cpu"))
    made.image_EQ, made.text_EQ = made.image_EQ.double(), made.text_EQ.double()
    return made


def plain(kind: str, image: Tensor, text: Tensor, temperature: Tensor) -> Tensor:
    """The whole batch's loss as the papers write it, all scores at once, by autograd."""
    if kind == "clip":
        scores, match = image @ text.T / temperature, torch.arange(ROWS)
        return (F.cross_entropy(scores, match) + F.cross_entropy(scores.T, match)) / 2
    image_m, text_m, alpha = unit(3), unit(4), 0.0 if kind == "itc hard" else 0.4
    hard = torch.eye(ROWS, ROWS + QUEUE, dtype=torch.float64)
    if kind == "itc same image":
        hard = (IMAGES[:, None] == torch.cat([IMAGES, QUEUE_IMAGES])).double()
        hard = hard / hard.sum(1, keepdim=True)
    losses = []
    for query, momentum, keys, more in (
        (image, image_m, text_m, queue().text_EQ),
        (text, text_m, image_m, queue().image_EQ),
    ):
        keys_EK = torch.cat([keys.T, more], 1)
        soft = (momentum @ keys_EK / temperature.detach()).softmax(1)
        losses.append(F.cross_entropy(query @ keys_EK / temperature, alpha * soft + (1 - alpha) * hard))
    return (losses[0] + losses[1]) / 2


def chunked(kind: str, image: Tensor, text: Tensor, temperature: Tensor, rows: slice, chunk: int) -> Tensor:
    if kind == "clip":
        return symmetric_contrast(image, text, temperature, chunk)
    same = SameImage.of(IMAGES[rows], QUEUE_IMAGES) if kind == "itc same image" else None
    alpha = 0.0 if kind == "itc hard" else 0.4
    return contrast(image, text, unit(3)[rows], unit(4)[rows], queue(), temperature, alpha, same, chunk=chunk)


def slopes(loss: Callable[[Tensor, Tensor, Tensor], Tensor], rows: slice, shape: tuple[int, ...] = ()) -> list[Tensor]:
    """The loss and its gradients by images, texts and temperature; the loss is scaled, as fp16 does."""
    leaves = [unit(1)[rows], unit(2)[rows], torch.full(shape, 0.07, dtype=torch.float64)]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    value = loss(*leaves)
    (3 * value).backward()
    return [value.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


KINDS = ["clip", "itc", "itc hard", "itc same image"]
EVERY = slice(0, ROWS)


@pytest.mark.parametrize("chunk", [1, 5, 12, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradients_are_those_of_all_scores_at_once(kind: str, chunk: int) -> None:
    wanted = slopes(lambda *given: plain(kind, *given), EVERY)
    assert len(wanted) == 4 and all(float(tensor.abs().max()) > 1e-3 for tensor in wanted)
    found = slopes(lambda i, t, temp: chunked(kind, i, t, temp, EVERY, chunk), EVERY)
    torch.testing.assert_close(found, wanted, **EXACT)
    # DeepSpeed gives a temperature a length.
    vector = slopes(lambda i, t, temp: chunked(kind, i, t, temp, EVERY, chunk), EVERY, (1,))
    torch.testing.assert_close(vector[3], wanted[3].reshape(1), **EXACT)


def of_rank(process: Process, kind: str, chunk: int) -> list[Tensor]:
    share = ROWS // process.world_size
    rows = slice(process.rank * share, (process.rank + 1) * share)
    return slopes(lambda i, t, temp: chunked(kind, i, t, temp, rows, chunk), rows)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_have_value_and_gradients_of_the_whole_batch(kind: str) -> None:
    wanted = slopes(lambda *given: plain(kind, *given), EVERY)
    first, second = run_ranks(of_rank, 2, kind, 4)
    # Engines average over processes.
    found = [(first[0] + second[0]) / 2, *(torch.cat([first[k], second[k]]) / 2 for k in (1, 2))]
    torch.testing.assert_close([*found, (first[3] + second[3]) / 2], wanted, **EXACT)


def test_only_what_has_a_gradient_is_given_one() -> None:
    image, text, temperature = unit(1), unit(2).requires_grad_(), torch.tensor(0.1, dtype=torch.float64)
    symmetric_contrast(image, text, temperature, 5).backward()
    assert text.grad is not None and image.grad is None and temperature.grad is None
    with torch.no_grad():
        alone = symmetric_contrast(image, text, temperature, 5)
    assert not alone.requires_grad
    warm = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))
    symmetric_contrast(image, text.detach(), warm, 5).backward()
    assert warm.grad is not None and float(warm.grad) != 0


MEASURE = """
import sys, torch
from torch.nn import functional as F
from pipeline.log_facts import process_peak_bytes
from pipeline.objectives.infonce import symmetric_contrast
from pipeline.objectives.itc import FeatureQueue, contrast
torch.set_num_threads(1)
rows, chunk, kind = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
image, text = (F.normalize(torch.randn(rows, 512), dim=1).requires_grad_() for _ in range(2))
momentum = [F.normalize(torch.randn(rows, 512), dim=1) for _ in range(2)] if kind == "itc" else []
temperature = torch.tensor(0.07, requires_grad=True)
tiny = [t[:8].detach().requires_grad_() for t in (image, text)]
symmetric_contrast(*tiny, temperature, 8).backward()  # libraries that are loaded at first use
before = process_peak_bytes()
if kind == "itc":
    queue = FeatureQueue(512, 0, torch.Generator(), torch.device("cpu"))
    loss = contrast(image, text, *momentum, queue, temperature, 0.4, chunk=chunk)
else:
    loss = symmetric_contrast(image, text, temperature, chunk)
loss.backward()
assert image.grad is not None and bool(image.grad.isfinite().all())
print(process_peak_bytes() - before)
"""


def bytes_above_features(rows: int, chunk: int, kind: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(rows), str(chunk), kind], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_memory_grows_with_the_chunk_and_not_with_all_scores() -> None:
    small, large = (bytes_above_features(4096, chunk, "clip") for chunk in (128, 4096))
    scores = 4096 * 4096 * 4
    assert large > 2 * scores, "all scores at once would not be seen"
    assert small < large - scores


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["clip", "itc"])
def test_a_batch_of_32768_needs_less_than_a_gib_above_its_features(kind: str) -> None:
    above = bytes_above_features(32768, 1024, kind)
    print(f"{kind}: {above / 2**20:.0f} MiB above the features at 32,768 x 512, chunks of 1,024 rows")
    assert above < 2**30
