from collections import Counter
from itertools import pairwise, takewhile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.errors import UserError
from pipeline.data.order import EvalOrder, OrderConfig, Pick, TrainOrder, Unit, Units

units_of_a_row = st.sampled_from(["image", "pair"])
shard_lists = st.lists(st.lists(st.integers(0, 3), max_size=9), min_size=1, max_size=7)
quick = settings(deadline=None, max_examples=60)


def units(shards: list[list[int]], unit: Unit, digest: str = "d") -> Units:
    texts = np.array([count for shard in shards for count in shard], dtype=np.int64)
    return Units(digest, [len(shard) for shard in shards], texts, unit)


def all_units(shards: list[list[int]], unit: Unit) -> set[tuple[int, int]]:
    texts = [count for shard in shards for count in shard]
    numbers = range if unit == "pair" else lambda count: range(min(count, 1))
    return {(row, number) for row, count in enumerate(texts) for number in numbers(count)}


def identity(pick: Pick, unit: Unit) -> tuple[int, int]:
    return pick.row, pick.text if unit == "pair" else 0


def picks(order: TrainOrder | EvalOrder, step: int, rank: int = 0, world_size: int = 1) -> list[Pick]:
    found = [order.pick(slot) for slot in order.slots(step, rank, world_size)]
    return [pick for pick in found if pick is not None]


@st.composite
def training(draw: st.DrawFn) -> tuple[list[list[int]], OrderConfig, int, int]:
    config = OrderConfig(streams=draw(st.integers(1, 5)), window=draw(st.integers(1, 12)), unit=draw(units_of_a_row))
    batch = config.streams * draw(st.integers(1, 3))
    shards = draw(shard_lists.filter(lambda s: len(all_units(s, config.unit)) >= batch))
    return shards, config, batch, draw(st.integers(0, 5))


@quick
@given(training())
def test_an_epoch_visits_each_unit_at_most_once_and_leaves_out_only_the_stated_tail(case) -> None:
    shards, config, batch, seed = case
    order = TrainOrder([(units(shards, config.unit), 1.0)], config, seed, batch)
    everything = all_units(shards, config.unit)
    steps = len(everything) // batch
    assert order.left_out == [len(everything) % batch]
    assert order.epoch_samples == [steps * batch]
    for epoch in range(3):
        visited = [p for step in range(epoch * steps, (epoch + 1) * steps) for p in picks(order, step)]
        assert {pick.epoch for pick in visited} == {epoch}
        found = {identity(pick, config.unit) for pick in visited}
        assert len(found) == len(visited) == steps * batch
        assert found <= everything


@quick
@given(training(), st.integers(0, 30))
def test_the_sequence_is_the_same_for_every_number_of_ranks_and_from_any_step(case, step) -> None:
    shards, config, batch, seed = case
    used = TrainOrder([(units(shards, config.unit), 1.0)], config, seed, batch)
    for earlier in range(step):
        picks(used, earlier)
    whole = picks(used, step)
    for ranks in (ranks for ranks in (1, 2, 3, 4) if batch % ranks == 0):
        fresh = TrainOrder([(units(shards, config.unit), 1.0)], config, seed, batch)
        parts = [picks(fresh, step, rank, ranks) for rank in range(ranks)]
        assert {len(part) for part in parts} == {batch // ranks}
        assert [pick for part in parts for pick in part] == whole


def test_texts_of_images_are_drawn_anew_each_epoch_and_exist() -> None:
    shards = [[3, 0, 1, 2] * 4]
    order = TrainOrder([(units(shards, "image"), 1.0)], OrderConfig(streams=2, unit="image"), 0, 4)
    drawn = {(pick.row, pick.text) for step in range(60) for pick in picks(order, step)}
    assert drawn == {(row, text) for row, count in enumerate(shards[0]) for text in range(count)}


def test_each_epoch_leaves_out_other_units() -> None:
    shards = [[1] * 10]
    order = TrainOrder([(units(shards, "pair"), 1.0)], OrderConfig(streams=2, window=3), 0, 4)
    visited = [{p.row for step in (2 * e, 2 * e + 1) for p in picks(order, step)} for e in range(30)]
    left_out = [frozenset(range(10)) - rows for rows in visited]
    assert all(len(rows) == 2 for rows in left_out)
    assert frozenset().union(*left_out) == set(range(10))


def test_order_changes_with_seed_data_and_epoch() -> None:
    def first(seed: int, digest: str, step: int = 0) -> list[int]:
        source = units([[1] * 64] * 4, "pair", digest)
        order = TrainOrder([(source, 1.0)], OrderConfig(streams=4, window=32), seed, 32)
        return [pick.row for pick in picks(order, step)]

    assert first(0, "a") == first(0, "a")
    assert len({tuple(rows) for rows in (first(0, "a"), first(1, "a"), first(0, "b"), first(0, "a", 8))}) == 4


def test_order_is_pinned() -> None:
    # A change here changes the order of every run, and must be declared.
    source = units([[2] * 10, [1] * 7, [], [3] * 5], "pair")
    order = TrainOrder([(source, 1.0)], OrderConfig(streams=2, window=8), 0, 4)
    assert [(p.row, p.text) for step in (0, 5, 13) for p in picks(order, step)] == [
        (18, 2),
        (19, 0),
        (3, 0),
        (4, 0),
        (20, 0),
        (19, 2),
        (7, 0),
        (9, 1),
        (12, 0),
        (20, 2),
        (7, 0),
        (6, 0),
    ]


def test_few_shards_are_read_by_two_ranks() -> None:
    source = units([[1] * 10] * 40, "pair")
    order = TrainOrder([(source, 1.0)], OrderConfig(streams=8, window=16), 0, 16)
    read = [{p.row // 10 for s in range(25) for p in picks(order, s, rank, 4)} for rank in range(4)]
    shared = [shard for shard in range(40) if sum(shard in shards for shards in read) > 1]
    assert len(shared) <= 5  # those in which a range begins, and the one in which the epoch does


@quick
@given(
    st.lists(st.tuples(shard_lists, st.integers(1, 5)), min_size=2, max_size=3),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_sources_of_a_mix_keep_their_ratio_and_their_epochs(mixed, streams, rounds) -> None:
    mixed = [(shards, weight) for shards, weight in mixed if len(all_units(shards, "pair")) >= streams]
    if not mixed:
        return
    config, batch = OrderConfig(streams=streams, window=5), streams * rounds
    sources = [(units(shards, "pair", str(k)), weight) for k, (shards, weight) in enumerate(mixed)]
    if len(mixed) == 1 and sources[0][0].total < batch:
        return
    order, total = TrainOrder(sources, config, 0, batch), sum(weight for _, weight in mixed)
    visited: list[Pick] = []
    for step in range(40):
        batch_picks = picks(order, step)
        for k, (_, weight) in enumerate(mixed):
            assert abs(sum(p.source == k for p in batch_picks) - batch * weight / total) < 2
        visited += batch_picks
    assert len(set(visited)) == len(visited)  # a (source, row, epoch, text) comes once


def test_a_stand_in_is_of_the_range_and_in_the_end_all_are_tried() -> None:
    source = units([[1] * 6] * 4, "pair")
    order = TrainOrder([(source, 1.0)], OrderConfig(streams=2, window=4), 0, 4)
    slots = [slot for step in range(6) for slot in order.slots(step) if slot.stream == 1]
    for slot in slots:
        tried = {order.pick(slot, attempt) for attempt in range(12)}
        assert tried == {order.pick(other) for other in slots}
        assert order.pick(slot, 12) is None


def test_what_a_lost_shard_had_is_replaced_by_many_samples_and_not_by_one() -> None:
    source = units([[1] * 500] * 4, "pair")
    order = TrainOrder([(source, 1.0)], OrderConfig(streams=2, window=64), 0, 4)
    lost = [slot for step in range(500) for slot in order.slots(step) if order.pick(slot).row < 500]
    used, attempts = Counter[int](), 0
    for slot in lost:
        rows = (order.pick(slot, attempt).row for attempt in range(1000))
        tried = list(takewhile(lambda row: row < 500, rows))
        attempts += len(tried)
        used[order.pick(slot, len(tried)).row] += 1
    assert len(lost) == 500
    assert max(used.values()) < 10  # of 1500; one by one in line, a handful would stand for all
    assert attempts < 4 * len(lost)


@pytest.mark.parametrize(
    ("batch", "message"),
    [(6, "multiple of streams=4; try streams=3"), (0, "multiple of streams"), (16, "needs at least 16")],
)
def test_a_batch_that_cannot_be_filled_is_refused(batch: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainOrder([(units([[1] * 9], "pair"), 1.0)], OrderConfig(streams=4), 0, batch)


def test_a_batch_that_the_ranks_cannot_share_is_refused() -> None:
    order = TrainOrder([(units([[1] * 9], "pair"), 1.0)], OrderConfig(streams=4), 0, 4)
    with pytest.raises(UserError, match="multiple of the 3 workers"):
        order.slots(0, 0, 3)


@pytest.mark.parametrize("bad", [{"streams": 0}, {"window": 0}, {"unit": "caption"}])
def test_a_senseless_order_is_refused(bad) -> None:
    with pytest.raises(UserError):
        OrderConfig(**bad)


@quick
@given(
    shard_lists,
    units_of_a_row,
    st.integers(1, 5),
    st.integers(1, 4),
    st.one_of(st.none(), st.integers(1, 30)),
)
def test_evaluation_visits_everything_once_in_order_in_equal_steps(shards, unit, size, ranks, limit) -> None:
    order = EvalOrder(units(shards, unit), size, ranks, limit)
    everything = sorted(all_units(shards, unit))[:limit]
    visited: list[tuple[int, int]] = []
    for step in range(order.steps):
        parts = [picks(order, step, rank, ranks) for rank in range(ranks)]
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1 and max(sizes) <= size
        visited += [(pick.row, pick.text) for part in parts for pick in part]
    assert visited == everything


@quick
@given(shard_lists, units_of_a_row, st.integers(1, 5), st.integers(1, 30))
def test_a_spread_evaluation_takes_its_few_from_everywhere_and_none_twice(shards, unit, size, limit) -> None:
    order = EvalOrder(units(shards, unit), size, 1, limit, spread=True)
    everything = sorted(all_units(shards, unit))
    visited = [everything.index((p.row, p.text)) for step in range(order.steps) for p in picks(order, step, 0, 1)]
    assert len(visited) == min(limit, len(everything))
    gaps = {after - before for before, after in pairwise(visited)} or {1}
    assert visited[:1] in ([], [0]) and min(gaps) >= 1 and max(gaps) - min(gaps) <= 1


def test_evaluation_has_no_stand_ins() -> None:
    order = EvalOrder(units([[1, 1]], "pair"), 2, 1)
    assert order.pick(order.slots(0)[0], 1) is None


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"limit": 0}])
def test_a_senseless_evaluation_is_refused(bad) -> None:
    with pytest.raises(UserError):
        EvalOrder(units([[1]], "pair"), **{"batch_size": 1, "world_size": 1} | bad)
