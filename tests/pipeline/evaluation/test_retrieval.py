"""Retrieval against a sort of every pair, whatever the number of processes, batches and strips."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_prep.errors import UserError
from pipeline.data.sample import EveryImage
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.exported import TASKS, Evaluation, Job
from pipeline.evaluation.opened import open_export
from pipeline.evaluation.retrieval import OF, outcomes_of, scores_of, told_rows
from pipeline.evaluation.source import Source
from pipeline.models.backbone import Backbone
from pipeline.models.config import BackboneName
from pipeline.models.schedule import TokenStream
from pipeline.process import Process
from pipeline.tasks import retrieval
from pipeline.tasks.gallery import Asked, Gallery, encode_split
from pipeline.tasks.retrieval import Ranks, _Pairs, rank_split
from tests.pipeline.distributed import RankError, run_ranks
from tests.pipeline.evaluation.exports import TOKENIZER, export, lively, loader_of, split
from tests.pipeline.metrics.test_ranks import order_of

IMAGES = 23  # with 38 captions: uneven tails for 2 and 3 processes


def encoded(model: Backbone, folder: Path, captions: int | None = None) -> tuple[Gallery, Source]:
    source = Source(split=folder, loader=loader_of(model.config), tokenizer=TOKENIZER)
    batches = source.batches(EveryImage(), 4, Process())
    return encode_split(model, batches, normalised(model, source), source.tokenize, 4, Process(), captions), source


def normalised(model: Backbone, source: Source) -> Callable[[Tensor], Tensor]:
    """Pixels in the model's own precision: in float64 no two scores are alike but by chance."""
    dtype = next(model.parameters()).dtype
    return lambda pixels: source.normalise(pixels).to(dtype)


@torch.no_grad()
def every_pair(model: Backbone, folder: Path) -> tuple[Tensor, Tensor, list[int]]:
    """(I, T) similarities and matching scores of all pairs, an image at a time; the image of each text."""
    source = Source(split=folder, loader=loader_of(model.config), tokenizer=TOKENIZER)
    (batch,) = source.batches(EveryImage(), 100, Process())
    ids, mask = source.tokenize([said for captions in batch.captions for said in captions])
    owner = [number for number, captions in enumerate(batch.captions) for _ in captions]
    normalise = normalised(model, source)
    similarity, matching = torch.zeros(2, len(batch), len(owner), dtype=next(model.parameters()).dtype)
    text = model.encode_text(ids, mask)
    for i in range(len(batch)):
        image = model.encode_image(normalise(batch.pixels[i : i + 1]))
        if model.has_contrast:
            similarity[i] = model.text_feature(text) @ model.image_feature(image)[0]
        if model.fusion_steps:
            copies = TokenStream(image.x.expand(len(owner), -1, -1))
            logits = model.itm_head(model.fuse(model.begin_fusion(text, ids, mask), copies).features_BF)
            matching[i] = logits[:, 1] + (similarity[i] if model.config.backbone == "blip" else 0)
    return similarity, matching, owner


def by_sort(first: list[float], then: list[float], right: list[bool], top: int) -> int:
    """The rank of the best right candidate, with the best `top` sorted anew."""
    order = order_of(first, right)
    best = sorted(order[:top], key=lambda at: (-then[at], right[at]))
    return next(place for place, at in enumerate([*best, *order[top:]]) if right[at])


@pytest.mark.parametrize(("backbone", "top"), [("albef", 0), ("albef", 5), ("albef", 128), ("blip", 5), ("clip", 5)])
def test_ranks_are_those_of_a_sort_of_all_pairs(tmp_path: Path, backbone: BackboneName, top: int) -> None:
    check(lively(backbone).double(), split(tmp_path / "test", IMAGES), top if backbone != "clip" else 0, top)


def test_meter_matches_every_pair(tmp_path: Path) -> None:
    check(lively("meter").double(), split(tmp_path / "test", IMAGES), 1000, 5)


def check(model: Backbone, folder: Path, sorted_again: int, top: int) -> None:
    similarity, matching, owner = every_pair(model, folder)
    gallery, _ = encoded(model, folder)
    assert [len(image.captions) for image in gallery.images[:7]] == [2, 0, 5, 1, 3, 0, 1]
    found = rank_split(model, gallery, top, Process())
    asking = sorted(set(owner))
    assert gallery.asking.tolist() == asking and len(asking) < IMAGES
    args = similarity.tolist(), matching.tolist()
    wanted = [by_sort(args[0][i], args[1][i], [of == i for of in owner], sorted_again) for i in asking]
    assert found.image_Q.tolist() == wanted
    args = similarity.T.tolist(), matching.T.tolist()
    rights = [[i == of for i in range(IMAGES)] for of in owner]
    wanted = [by_sort(args[0][t], args[1][t], rights[t], sorted_again) for t in range(len(owner))]
    assert found.text_T.tolist() == wanted


def test_one_caption_makes_pairs(tmp_path: Path) -> None:
    gallery, _ = encoded(lively("clip"), split(tmp_path / "test", 8), captions=1)
    assert [len(image.captions) for image in gallery.images] == [1, 0, 1, 1, 1, 0, 1, 1]
    assert gallery.owner_T.tolist() == [0, 2, 3, 4, 6, 7]


def on_rank(process: Process, evaluation: Evaluation) -> dict[str, Any]:
    """What every rank gets of a split, without the time that the first one takes."""
    task = TASKS[evaluation.task]
    model, source = open_export(evaluation.model, evaluation.task, evaluation.split)
    return asdict(task.evaluate(Job(evaluation=evaluation, model=model.eval(), source=source, process=process)))


@pytest.mark.parametrize("backbone", ["albef", "blip", "meter", "clip"])
def test_processes_and_batches_change_no_score(tmp_path: Path, backbone: BackboneName) -> None:
    folder, data = export(tmp_path / "export", backbone), split(tmp_path / "test", IMAGES)
    asked = Evaluation(model=folder, task="retrieval", split=str(data), rerank=4)
    wanted = on_rank(Process(), asked)
    assert (wanted["samples"], wanted["skipped"]) == (23, 0)
    assert wanted["more"] == {"images": 23, "captions": 38, "queries": 16}
    assert 0 < wanted["scores"][-1]["value"] < 100
    assert on_rank(Process(), replace(asked, batch_size=1)) == wanted
    for world_size in (2, 3):
        for batch_size in (1, 64):
            results = run_ranks(on_rank, world_size, replace(asked, batch_size=batch_size))
            assert results == [wanted] * world_size


def test_ranking_among_some_of_a_splits_images_is_told(tmp_path: Path) -> None:
    folder, data = export(tmp_path / "export", "clip"), split(tmp_path / "test", IMAGES)
    asked = Evaluation(model=folder, task="retrieval", split=str(data), limit=9)
    model, source = open_export(folder, "retrieval", str(data))
    found = TASKS["retrieval"].evaluate(Job(evaluation=asked, model=model, source=source, process=Process()))
    assert (found.samples, found.more["images"], found.more[OF], found.whole) == (9, 9, IMAGES, False)
    assert {row["of"] for row in told_rows({}, found)} == {IMAGES}
    everything = on_rank(Process(), replace(asked, limit=None))
    assert OF not in everything["more"] and everything["whole"]
    with pytest.raises(UserError, match=r"evaluate\.retrieval_pairs=0 must be at least 1"):
        EvaluateConfig(retrieval_pairs=0)
    assert EvaluateConfig(retrieval_pairs=None).retrieval_pairs is None


def test_more_processes_than_images(tmp_path: Path) -> None:
    folder, data = export(tmp_path / "export"), split(tmp_path / "test", 2, captions=[1])
    asked = Evaluation(model=folder, task="retrieval", split=str(data), rerank=4)
    assert run_ranks(on_rank, 3, asked) == [on_rank(Process(), asked)] * 3


def test_strips_change_no_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively("albef")
    gallery, _ = encoded(model, split(tmp_path / "test", IMAGES))
    whole = rank_split(model, gallery, 4, Process())
    monkeypatch.setattr(retrieval, "STRIP", 100)
    monkeypatch.setattr(retrieval, "ROWS_AT_ONCE", 3)
    parts = rank_split(model, gallery, 4, Process())
    assert [ranks.tolist() for ranks in parts] == [ranks.tolist() for ranks in whole]


def test_pairs_of_a_large_split_are_found_by_numbers_beyond_32_bits() -> None:
    image, texts, text = 3000, 1 << 20, 5
    pairs = _Pairs(
        key_P=torch.tensor([text, image * texts + text]),
        score_P=torch.tensor([1.0, 2.0]),
        owner_T=torch.tensor([image]).expand(texts),
    )
    scores, right = pairs.of(torch.tensor([[image]], dtype=torch.int32), torch.tensor([[text]]))
    assert scores.tolist() == [[2.0]] and right.all()


@pytest.mark.parametrize(
    ("backbone", "rerank", "kept"), [("albef", 0, False), ("albef", 2, True), ("meter", 0, True), ("clip", 2, False)]
)
def test_tokens_are_held_only_where_pairs_are_matched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: BackboneName, rerank: int, kept: bool
) -> None:
    folder, data = export(tmp_path / "export", backbone), split(tmp_path / "test", 3)
    ranked: list[Gallery] = []

    def rank(model: Backbone, gallery: Gallery, *asked: Any) -> Ranks:
        ranked.append(gallery)
        return rank_split(model, gallery, *asked)

    monkeypatch.setattr("pipeline.evaluation.retrieval.rank_split", rank)
    on_rank(Process(), Evaluation(model=folder, task="retrieval", split=str(data), rerank=rerank))
    assert [len(gallery.tokens) for gallery in ranked] == [3 if kept else 0]
    assert (ranked[0].text is not None) == kept


def test_scores_by_hand() -> None:
    images = [Asked(n, f"s{n}", f"s{n}", ("x",) * count) for n, count in enumerate((2, 0, 1))]
    none = torch.empty(0)
    gallery = Gallery(
        images=images, owner_T=torch.tensor([0, 0, 2]), mask_TL=none, image_IE=none, text_TE=none, text=None, tokens={}
    )
    ranks = Ranks(torch.tensor([0, 7]), torch.tensor([0, 4, 20]))
    scores = {score.metric: score for score in scores_of(outcomes_of(gallery, ranks))}
    third = 100 / 3
    values = {
        "TR R@1": 50, "TR R@5": 50, "TR R@10": 100, "IR R@1": third, "IR R@5": 2 * third, "IR R@10": 2 * third,
        "R@10": 50 + third, "TR mean": 200 / 3, "IR mean": 5 * third / 3, "mean_recall": (200 + 5 * third) / 6,
    }  # fmt: skip
    assert {metric: score.value for metric, score in scores.items()} == pytest.approx(values)
    # Two images are resampled, so a draw has one of three mixes: the first twice, both, the second twice.
    assert (scores["TR R@1"].low, scores["TR R@1"].high) == (0, 100)
    assert (scores["IR R@5"].low, scores["IR R@5"].high) == (0, 100)


@pytest.mark.parametrize("backbone", ["albef", "meter", "clip"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_nan_is_an_error_and_no_first_place(tmp_path: Path, backbone: BackboneName, world_size: int) -> None:
    folder, data = tmp_path / "export", split(tmp_path / "test", 5)
    export(folder, backbone)
    spoil(folder, "itm_head.bias" if backbone != "clip" else "vision_proj.weight")
    asked = Evaluation(model=folder, task="retrieval", split=str(data))
    if world_size == 1:
        with pytest.raises(UserError, match=r"not finite numbers, the first that of s0"):
            on_rank(Process(), asked)
        return
    with pytest.raises(RankError) as error:
        run_ranks(on_rank, world_size, asked)
    assert error.value.causes == dict.fromkeys(range(world_size), "UserError")


def spoil(folder: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors[name][-1] = torch.nan  # of a head of two classes that of a match
    save_file(tensors, folder / "model.safetensors")


def test_a_split_without_captions_is_refused_on_all_ranks(tmp_path: Path) -> None:
    folder, data = export(tmp_path / "export"), split(tmp_path / "test", 3, captions=[0])
    asked = Evaluation(model=folder, task="retrieval", split=str(data))
    with pytest.raises(UserError, match="none of 3 images has a caption"):
        on_rank(Process(), asked)
    with pytest.raises(RankError) as error:
        run_ranks(on_rank, 2, asked)
    assert set(error.value.causes.values()) == {"UserError"}
