import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.errors import UserError
from data_prep.job import Layout
from data_prep.records import Record
from data_prep.writer import write_split
from pipeline.data.batch import ImageTextBatch, Skip
from pipeline.data.decode import BadSample
from pipeline.data.loader import LoaderConfig, StepLoader, eval_loader, train_loader
from pipeline.data.sample import questions_in
from pipeline.data.shards import ShardFolder
from pipeline.data.text import Tokenizer
from pipeline.process import Process
from pipeline.tasks.classes import has_task
from tests.pipeline.data.samples import Listed, MakeSplit, png, spoil

CONFIG = LoaderConfig(
    height=12, width=16, crop_scale=(0.5, 1.0), flip=True, streams=2, window=4, workers=0, max_tokens=8
)

DAMAGE = "image cannot be decoded: UnidentifiedImageError"


@pytest.fixture
def training(tokenizer: Tokenizer):
    def make(*paths: Path, rank: int = 0, world_size: int = 1, config=CONFIG, **options) -> StepLoader:
        chosen = {"text": "captions", "unit": "pair", "global_batch": 4, "steps": 6, "seed": 0} | options
        process = Process(rank=rank, world_size=world_size)
        weights = [3.0, 1.0][: len(paths)]
        sources = list(zip(paths, weights, strict=True))
        return train_loader(sources, config=config, tokenizer=tokenizer, process=process, **chosen)

    return make


def content(batch: ImageTextBatch) -> list[tuple]:
    return [
        (key, text, label, pixels.tobytes(), tuple(ids), draws)
        for key, text, label, pixels, ids, draws in zip(
            batch.keys,
            batch.texts,
            batch.labels.tolist(),
            batch.pixels.numpy(),
            batch.token_ids.tolist(),
            batch.draw_seeds.tolist(),
            strict=True,
        )
    ]


def sequence(loader: StepLoader) -> list[tuple]:
    return [sample for batch in loader for sample in content(batch)]


def test_a_batch_says_everything_of_its_samples(make_split: MakeSplit, training) -> None:
    path = make_split(12)
    batch = next(iter(training(path)))
    assert len(batch) == 4
    assert batch.pixels.shape == (4, 3, 12, 16) and batch.pixels.dtype == torch.uint8
    assert batch.token_ids.shape == batch.token_mask.shape == (4, 8)
    assert batch.labels.tolist() == [1] * 4
    assert batch.skipped == []
    for key, text, row, captions, group in zip(
        batch.keys, batch.texts, batch.sample_ids.tolist(), batch.captions, batch.groups, strict=True
    ):
        assert key == f"s{row}" and group == f"g{row // 2}"
        assert text in captions == [f"caption {k} of {row}" for k in range(2)]


def test_pictures_without_a_caption_do_not_occur_but_their_statements_do(make_split: MakeSplit, training) -> None:
    path = make_split(12)
    assert all(int(key[1:]) % 4 != 3 for key, *_ in sequence(training(path, steps=12)))
    found = sequence(training(path, text="statements", unit="image", steps=80))
    assert {key for key, *_ in found} == {f"s{k}" for k in range(12)}
    assert len({text for _, text, *_ in found}) == 36
    for key, text, label, *_ in found:
        assert label == int(text.split()[1] == str(int(key[1:]) % 3))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_sequence_is_the_same_for_all_numbers_of_ranks_and_workers(
    make_split: MakeSplit, training, workers: int, world_size: int
) -> None:
    path = make_split(12)
    expected = sequence(training(path))
    if world_size == 4 and workers == 2:
        return  # eight processes say nothing that two times two do not
    config = replace(CONFIG, workers=workers)
    ranks = [training(path, rank=rank, world_size=world_size, config=config) for rank in range(world_size)]
    steps = zip(*(list(rank) for rank in ranks), strict=True)
    assert [sample for parts in steps for part in parts for sample in content(part)] == expected


@pytest.mark.parametrize("start", [1, 4, 6])
def test_a_resumed_run_goes_on_as_if_never_stopped(make_split: MakeSplit, training, start: int) -> None:
    path = make_split(12)
    assert sequence(training(path, start_step=start)) == sequence(training(path))[4 * start :]


def test_a_run_that_is_over_gives_nothing(make_split: MakeSplit, training) -> None:
    assert sequence(training(make_split(12), start_step=9)) == []


def test_augmentation_differs_between_epochs(make_split: MakeSplit, training) -> None:
    seen: dict[tuple[str, str], set[bytes]] = {}
    for key, text, _, pixels, _, _ in sequence(training(make_split(12), steps=12)):
        seen.setdefault((key, text), set()).add(pixels)
    assert max(len(pixels) for pixels in seen.values()) > 1


def test_each_use_of_a_sample_draws_anew_and_evaluation_never(make_split: MakeSplit, training, tokenizer) -> None:
    path = make_split(12)
    draws = [sample[-1] for sample in sequence(training(path, steps=12))]
    assert len(set(draws)) == len(draws)
    again = [sample[-1] for sample in sequence(training(path, steps=12, seed=1))]
    assert not set(draws) & set(again)
    options = {"text": "captions", "unit": "pair", "config": CONFIG, "tokenizer": tokenizer, "batch_size": 4}
    assert not any(batch.draw_seeds.any() for batch in eval_loader(path, **options, process=Process()))


def test_a_mix_keeps_its_ratio_in_every_batch_and_its_images_apart(make_split: MakeSplit, training) -> None:
    first, second = make_split(12), make_split(9, name="more")
    for batch in training(first, second, unit="image", steps=20):
        ids = batch.sample_ids
        assert ((ids < 12).sum(), (ids >= 12).sum()) == (3, 1)
        assert [f"s{i if i < 12 else i - 12}" for i in ids.tolist()] == batch.keys


def test_a_bad_sample_keeps_its_slot_and_nothing_else_moves(make_split: MakeSplit, training) -> None:
    path = make_split(12)
    before = sequence(training(path, unit="image", steps=9))
    spoil(path, 5)
    loader = training(path, unit="image", steps=9)
    after, skipped = [], Counter[tuple[str, str]]()
    for batch in loader:
        after += content(batch)
        skipped.update((skip.name, skip.reason) for skip in batch.skipped)
    spoiled = [place for place, sample in enumerate(before) if sample[0] == "s5"]
    assert spoiled
    for place, (one, two) in enumerate(zip(before, after, strict=True)):
        assert (one != two) if place in spoiled else (one == two)
    assert skipped[("00001.tar#0 s5", DAMAGE)] >= len(spoiled)
    assert (loader.seen, loader.bad) == (36, skipped.total())


def test_samples_of_a_truncated_shard_are_counted_and_named(make_split: MakeSplit, training) -> None:
    path = make_split(20)
    os.truncate(path / "00003.tar", 1)
    config = replace(CONFIG, max_bad_share=1.0)
    names = Counter(skip.name for batch in training(path, steps=8, config=config) for skip in batch.skipped)
    assert names and set(names) <= {f"00003.tar#{k}" for k in range(5)}


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_samples_stop_the_run_in_one_line(make_split: MakeSplit, training, workers: int) -> None:
    path = make_split(12)
    spoil(path, 5)
    config = replace(CONFIG, max_bad_share=0.001, workers=workers)
    with pytest.raises(
        UserError, match=r"^2 of \d+ samples could not be used, the last one 00001\.tar#0 s5: "
    ) as error:
        sequence(training(path, config=config, unit="image", steps=40))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_range_without_any_good_sample_stops_the_run(make_split: MakeSplit, training, workers: int) -> None:
    path = make_split(12)
    for row in range(12):
        spoil(path, row)
    with pytest.raises(UserError, match=r"none of \d+ samples around .* can be used \(image cannot"):
        sequence(training(path, config=replace(CONFIG, workers=workers)))


def test_errors_of_the_program_are_raised(make_split: MakeSplit, training) -> None:
    loader = training(make_split(12), config=replace(CONFIG, workers=1))
    loader.dataset.inner._tokenizer = None
    try:
        next(iter(loader))
    except AttributeError as error:
        error.__traceback__ = None  # holds the iterator in a cycle, and collecting it there takes 5 s
    else:
        pytest.fail("the error of the worker was lost")


def test_loading_draws_nothing_from_the_global_generator(make_split: MakeSplit, training) -> None:
    loader = training(make_split(12), config=replace(CONFIG, workers=1))
    state = torch.get_rng_state()
    sequence(loader)
    assert (torch.get_rng_state() == state).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_batch": 5}, "multiple of streams=2; try streams=1"),
        ({"global_batch": 64}, "needs at least 64"),
        ({"world_size": 3}, "multiple of the 3 workers"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_starts(make_split, training, options, message: str) -> None:
    with pytest.raises(UserError, match=message):
        training(make_split(12), **options)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("limit", [None, 7])
def test_evaluation_gives_every_statement_once(make_split, tokenizer, world_size: int, limit) -> None:
    path = make_split(7, shard_samples=3)
    ranks = [
        eval_loader(
            path,
            text="statements",
            unit="pair",
            config=CONFIG,
            tokenizer=tokenizer,
            batch_size=4,
            process=Process(rank=rank, world_size=world_size),
            limit=limit,
        )
        for rank in range(world_size)
    ]
    assert len({len(rank) for rank in ranks}) == 1
    steps = zip(*(list(rank) for rank in ranks), strict=True)
    found = [(s[0], s[1]) for parts in steps for part in parts for s in content(part)]
    assert found == [(f"s{i}", f"statement {k} of {i}") for i in range(7) for k in range(3)][:limit]


def test_evaluation_of_images_gives_each_once_with_its_first_text(make_split, tokenizer) -> None:
    options = {"text": "captions", "unit": "image", "config": CONFIG, "tokenizer": tokenizer, "batch_size": 4}
    batches = list(eval_loader(make_split(10), **options, process=Process()))
    assert [text for batch in batches for text in batch.texts] == [f"caption 0 of {i}" for i in range(10) if i % 4 != 3]
    assert all(len(captions) == 2 for batch in batches for captions in batch.captions)


def test_an_empty_part_of_the_last_evaluation_batch_has_its_shapes(make_split, tokenizer) -> None:
    options = {"text": "captions", "unit": "image", "config": CONFIG, "tokenizer": tokenizer, "batch_size": 4}
    parts = [list(eval_loader(make_split(2), **options, process=Process(rank=rank, world_size=3))) for rank in range(3)]
    sizes = [len(batch) for part in parts for batch in part]
    assert sorted(sizes) == [0, 1, 1]
    empty = parts[sizes.index(0)][0]
    assert empty.pixels.shape == (0, 3, 12, 16) and empty.token_ids.shape == (0, 8)


def test_a_bad_sample_of_evaluation_is_left_out_and_named(make_split, tokenizer) -> None:
    path = make_split(6)
    spoil(path, 1)
    options = {"text": "statements", "unit": "image", "config": CONFIG, "tokenizer": tokenizer, "batch_size": 4}
    batches = list(eval_loader(path, **options, process=Process()))
    assert [key for batch in batches for key in batch.keys] == ["s0", "s2", "s3", "s4", "s5"]
    assert batches[0].skipped == [Skip("00000.tar", 1, "s1", DAMAGE)]
    assert batches[0].skipped[0].name == "00000.tar#1 s1"


def test_data_without_the_wanted_texts_is_refused(make_split, tokenizer, training) -> None:
    path = make_split(4)
    rows = np.load(path / "samples.npy")
    rows[:, 2] = 0
    np.save(path / "samples.npy", rows)
    with pytest.raises(UserError, match=r"index\.json counts 6 .*, samples\.npy 0; make the index again"):
        next(iter(training(path, steps=1)))
    without_counts(path)
    with pytest.raises(UserError, match="4 samples but no captions"):
        training(path)


def without_counts(path: Path) -> None:
    """Makes an index as it was before it counted texts."""
    index = json.loads((path / "index.json").read_text())
    for shard in index["shardlist"]:
        for key in ("captions", "captioned", "statements", "stated"):
            del shard[key]
    (path / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("text", ["captions", "statements"])
@pytest.mark.parametrize("unit", ["image", "pair"])
def test_an_index_without_counts_has_the_same_units(make_split: MakeSplit, text, unit) -> None:
    path = make_split(23)
    counted = ShardFolder(path).units(text, unit)
    without_counts(path)
    old = ShardFolder(path).units(text, unit)
    assert counted.shard_sizes.tolist() == old.shard_sizes.tolist() and counted.total == old.total > 0
    assert [counted.find(4, n) for n in range(2)] == [old.find(4, n) for n in range(2)]


def test_a_batch_moves_whole(make_split: MakeSplit, training) -> None:
    batch = next(iter(training(make_split(12))))
    moved = batch.to("meta")
    assert {t.device.type for t in (moved.pixels, moved.token_ids, moved.token_mask, moved.labels)} == {"meta"}
    assert moved.sample_ids.device.type == moved.draw_seeds.device.type == "meta" and moved.keys == batch.keys


@pytest.mark.parametrize(
    "bad",
    [
        {"workers": -1},
        {"max_tokens": 2},
        {"max_bad_share": 2.0},
        {"streams": 0},
        {"height": 0},
        {"prefetch": 0},
        {"stall_seconds": -1},
    ],
)
def test_senseless_settings_are_refused(bad) -> None:
    with pytest.raises(UserError, match=next(iter(bad))):
        LoaderConfig(**bad)


@pytest.mark.parametrize("answers", [{"answer": "left"}, {"answer": "no", "answers": ["no", "to the right"]}, {}])
def test_a_picture_is_not_mirrored_where_an_answer_names_a_side(tmp_path: Path, tokenizer, answers: dict) -> None:
    question = {"question": "Which way does it face?", **answers}
    record = Record(key="s0", source="test", id="0", images={"": png(0)}, questions=[question])
    write_split(Listed([record]), tmp_path / "x", workers=1, name="x", fingerprint="x", layout=Layout(shard_samples=1))
    config = LoaderConfig(height=16, width=16, flip=True, streams=1, window=1, workers=0, max_tokens=8)
    options = {"text": "questions", "unit": "pair", "config": config, "tokenizer": tokenizer, "seed": 0, "steps": 30}
    loader = train_loader([(tmp_path / "x", 1.0)], global_batch=1, process=Process(), **options)
    batches = list(loader)
    assert all(batch.texts == [question["question"]] and batch.told == [question] for batch in batches)
    assert len({batch.pixels.numpy().tobytes() for batch in batches}) == (1 if answers else 2)


ASKABLE = {"question": "How many?", "answers": ["two"] * 10, "question_id": 7}


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("how many?", "one without a text `question`"),
        (None, "one without a text `question`"),
        ({"question": 3}, "one without a text `question`"),
        (ASKABLE | {"answers": "yes"}, "one whose `answers` are no list of texts"),
        (ASKABLE | {"answers": [{"answer": "yes"}]}, "one whose `answers` are no list of texts"),
        (ASKABLE | {"answers": [None] * 10}, "one whose `answers` are no list of texts"),
        (ASKABLE | {"question_id": [7]}, "one whose `question_id` is neither a whole number nor a text"),
        (ASKABLE | {"answers": []}, None),
        ({"question": "How many?"}, None),
    ],
)
def test_a_question_that_cannot_be_used_is_left_out_and_counted(tmp_path: Path, tokenizer, asked, reason) -> None:
    """What nobody answered can be asked, and cannot be learned from."""
    record = Record(key="s0", source="test", id="0", images={"": png(0)}, questions=[ASKABLE] * 4)
    write_split(Listed([record]), tmp_path / "x", workers=1, name="x", fingerprint="x", layout=Layout(shard_samples=1))
    folder = ShardFolder(tmp_path / "x")
    sample = folder.read(0)
    sample.fields["questions"][2] = asked
    for kind, why in (("questions", reason), ("answers", reason or "a question without `answers` of annotators")):
        assert sample.text(kind, 1) == ("How many?", -1, ASKABLE)
        if why is None:
            assert sample.text(kind, 2)[0] == "How many?"
        else:
            with pytest.raises(BadSample, match=why):
                sample.text(kind, 2)
    assert has_task(sample, "vqa") and len(questions_in(sample.fields)) == 3 + (reason is None)
    sample.fields["questions"] = [asked]
    assert not has_task(sample, "vqa") and has_task(sample, "vqa", answered=False) == (reason is None)
