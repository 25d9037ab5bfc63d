"""Work dealt to ranks, and results that all of them get in one order."""

import pytest
import torch

from pipeline.gathering import all_objects, assemble, dealt, places_of, total
from pipeline.objectives.gather import global_means
from pipeline.process import Process
from tests.pipeline.distributed import run_ranks


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize(("rows", "size"), [(0, 4), (1, 4), (8, 4), (10, 3), (7, 1)])
def test_every_row_is_dealt_once_in_the_same_blocks(rows: int, size: int, world_size: int) -> None:
    ranks = [Process(rank=rank, world_size=world_size) for rank in range(world_size)]
    blocks = [(block.start, block.stop) for rank in ranks for block in dealt(rows, size, rank)]
    assert sorted(blocks) == [(begin, min(begin + size, rows)) for begin in range(0, rows, size)]


def exchanged(process: Process, rows: int) -> list[torch.Tensor]:
    places = places_of(dealt(rows, 2, process), torch.device("cpu"))
    kinds = [torch.arange(rows), torch.arange(rows) % 3 == 0, torch.arange(rows).bfloat16()]
    kinds += [torch.arange(rows * 6).view(rows, 2, 3).double()]
    assert all_objects(process, process.rank) == list(range(process.world_size))
    added = total(process, torch.tensor([process.rank, 1]))
    return [*(assemble(process, kind[places], places, rows) for kind in kinds), added]


@pytest.mark.parametrize("rows", [1, 7])
def test_rows_of_any_type_come_to_their_places(rows: int) -> None:
    alone = exchanged(Process(), rows)
    assert alone[0].tolist() == list(range(rows))
    for found in run_ranks(exchanged, 3, rows):
        assert [kind.tolist() for kind in found[:-1]] == [kind.tolist() for kind in alone[:-1]]
        assert [kind.dtype for kind in found] == [kind.dtype for kind in alone]
        assert found[-1].tolist() == [3, 3]


def means(process: Process, draws: int) -> tuple[list[list[float]], float]:
    torch.manual_seed(process.rank)
    own = torch.rand(draws, requires_grad=True)
    found = global_means({"a": own, "b": own.square()})
    found["b"].sum().backward()  # type: ignore[no-untyped-call]
    assert own.grad is not None
    return [value.tolist() for value in found.values()], float((own.grad - 2 * own).abs().max())


def test_means_are_the_same_bits_on_every_rank_and_keep_each_ones_gradient() -> None:
    """What is made of them, such as the scores' shift, is saved by one rank and loaded by all."""
    (first, none), (second, too) = run_ranks(means, 2, 1000)
    assert first == second and none == too == 0
