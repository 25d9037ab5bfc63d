"""Fine-tuning for retrieval: its loss by hand, ranks alike, masked and packed ranking, costs, what is refused."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from data_prep.errors import UserError
from pipeline.data.batch import ImageTextBatch
from pipeline.data.sample import EveryImage
from pipeline.evaluation.source import Source
from pipeline.measure.step_macs import classification_macs
from pipeline.models.backbone import Backbone
from pipeline.models.config import BackboneName
from pipeline.models.schedule import Intervention
from pipeline.process import Process
from pipeline.tasks.classes import RETRIEVAL
from pipeline.tasks.classification import Answers, SmartTrimConfig
from pipeline.tasks.compared import Contrasted, Ranked
from pipeline.tasks.comparing import Pairing, RetrievalConfig
from pipeline.tasks.gallery import encode_split
from pipeline.tasks.retrieval import matching_parts, rank_split
from pipeline.tasks.retrieval_model import RetrievalModel, RetrievalTask
from pipeline.tasks.task import Losses
from pipeline.trimming.cost import units_of
from pipeline.trimming.smarttrim import GumbelGate, MaskedTrimming, threshold
from pipeline.trimming.trimmers import Policy, TokenTrimmer, TrimmerConfig
from tests.pipeline.distributed import run_ranks
from tests.pipeline.evaluation.exports import TOKENIZER, lively, loader_of, split
from tests.pipeline.evaluation.test_retrieval import by_sort
from tests.pipeline.small import scale, small_batch, small_model

CONTRASTING: list[BackboneName] = ["albef", "blip"]
RANKING: list[BackboneName] = [*CONTRASTING, "meter"]
FALSE = RetrievalConfig(false_texts=3)
MIXED = TrimmerConfig(keep_bias=0.5, last_std=0.5)
POLICIES = {"smarttrim": Policy(), "local": Policy(tokens="local", heads="all")}
HARD = GumbelGate(0.0, 1.0)
"""The threshold, with a gradient."""


@pytest.fixture(autouse=True)
def doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def model_of(
    backbone: BackboneName, trimmers: TrimmerConfig | None = None, policy: str = "smarttrim"
) -> RetrievalModel:
    """Weights far apart, so that scores differ."""
    made = small_model(backbone)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter += 0.1 * torch.randn_like(parameter) * (name != "temp")
    return RetrievalModel(made, trimmers, POLICIES[policy], FALSE).eval()


def task_of(model: RetrievalModel, batch: ImageTextBatch) -> RetrievalTask:
    target = 1.0 if model.trimmers is None else 1.3
    return RetrievalTask(model, scale, target, SmartTrimConfig(), units_of(model.backbone, batch.token_mask))


def compared(model: RetrievalModel, batch: ImageTextBatch, gate: GumbelGate | None = None) -> Answers:
    answers: Answers = model(scale(batch.pixels), batch.token_ids, batch.token_mask, gate, True, Pairing.of(batch))
    return answers


def every_pair(model: RetrievalModel, batch: ImageTextBatch, methods: list[Intervention]) -> Tensor:
    """(B, B, 2) of each picture with each text, each matched alone."""
    pixels, ids, mask = scale(batch.pixels), batch.token_ids, batch.token_mask
    size = len(batch)
    return torch.stack([model.classify(pixels[i].expand(size, -1, -1, -1), ids, mask, methods) for i in range(size)])


@pytest.mark.parametrize("backbone", CONTRASTING)
def test_the_loss_is_contrast_both_ways_and_matching_of_pairs_that_differ(backbone: BackboneName) -> None:
    model, batch = model_of(backbone), small_batch(5)
    image = model.backbone.encode_image(scale(batch.pixels))
    text = model.backbone.encode_text(batch.token_ids, batch.token_mask)
    scores = model.backbone.image_feature(image) @ model.backbone.text_feature(text).T / model.backbone.temp
    right = torch.arange(5)
    contrast = (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2
    said = compared(model, batch).full_BA
    assert isinstance(said, Contrasted)
    # Which pairs were matched: the only ones that give these scores, each of them matched alone.
    every = every_pair(model, batch, [])
    found = [(every - row).abs().sum(-1).flatten().argmin().item() for row in said.matching_N2]
    pairs = [divmod(int(at), 5) for at in found]
    torch.testing.assert_close(torch.stack([every[pair] for pair in pairs]), said.matching_N2)
    assert pairs[:5] == [(b, b) for b in range(5)]
    assert all(pair[1] == b != pair[0] for b, pair in enumerate(pairs[5:10])), "a text with another image"
    assert all(pair[0] == b != pair[1] for b, pair in enumerate(pairs[10:])), "an image with another text"
    matching = -torch.stack([row.log_softmax(0)[int(at < 5)] for at, row in enumerate(said.matching_N2)]).mean()
    losses = task_of(model, batch).losses(model, batch, 0.5)
    torch.testing.assert_close(losses.total, contrast + matching)
    assert losses.scalars["accuracy"] == pytest.approx(
        float(torch.cat([scores.argmax(way) == right for way in (0, 1)]).double().mean())
    )


def test_the_divergence_is_over_the_candidates_of_the_batch_both_ways_and_over_matching() -> None:
    torch.manual_seed(0)
    sides = [
        Contrasted(F.normalize(torch.randn(3, 4)), F.normalize(torch.randn(3, 4)), torch.tensor(0.5), torch.randn(9, 2))
        for _ in range(2)
    ]
    for side in sides:
        side.image_BE.requires_grad_()
        side.matching_N2.requires_grad_()
    wanted = torch.zeros(())
    scores = [side.image_BE @ side.text_BE.T / 0.5 for side in sides]
    for trimmed, full in ((scores[0], scores[1]), (scores[0].T, scores[1].T)):
        p, q = trimmed.softmax(1), full.softmax(1)
        wanted = wanted + (p * (p / q).log()).sum() / 3 / 2
    p, q = (side.matching_N2.softmax(1) for side in sides)
    wanted = wanted + (p * (p / q).log()).sum() / 9
    found = RETRIEVAL.divergence(*sides)
    torch.testing.assert_close(found, wanted)
    found.backward()
    assert sides[0].image_BE.grad is not None and sides[1].image_BE.grad is None
    assert sides[0].matching_N2.grad is not None and sides[1].matching_N2.grad is None


def step_of_rank(
    process: Process, backbone: BackboneName, trimmed: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients of this rank's share of a batch."""
    torch.set_default_dtype(torch.float64)
    try:
        model, share = model_of(backbone, MIXED if trimmed else None), 6 // process.world_size
        batch = small_batch(6).part(slice(process.rank * share, (process.rank + 1) * share))
        task = task_of(model, small_batch(6))
        losses: Losses = task.losses(Hard(model), batch, 0.3)
        losses.total.backward()
        named = {name: loss.detach() for name, loss in {**losses.named, "total": losses.total}.items()}
        return named, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    finally:
        torch.set_default_dtype(torch.float32)


class Hard:
    """The model without the chance in its masks."""

    def __init__(self, model: RetrievalModel) -> None:
        self.model = model

    def __call__(
        self, pixels: Tensor, ids: Tensor, mask: Tensor, gate: object, full: bool, pairing: Pairing
    ) -> Answers:
        answers: Answers = self.model(pixels, ids, mask, HARD, full, pairing)
        return answers


@pytest.mark.parametrize("trimmed", [False, True], ids=["full", "trimmed"])
@pytest.mark.parametrize("backbone", RANKING)
def test_two_processes_compute_losses_and_gradients_of_the_whole_batch(backbone: BackboneName, trimmed: bool) -> None:
    losses, gradients = step_of_rank(Process(), backbone, trimmed)
    parts = run_ranks(step_of_rank, 2, backbone, trimmed)
    assert losses.keys() == ({"task", "full", "divergence", "cost", "total"} if trimmed else {"task", "total"})
    for name, loss in losses.items():
        torch.testing.assert_close((parts[0][0][name] + parts[1][0][name]) / 2, loss, msg=name)
    assert gradients and all(set(part[1]) == set(gradients) for part in parts)
    for name, gradient in gradients.items():
        torch.testing.assert_close((parts[0][1][name] + parts[1][1][name]) / 2, gradient, msg=name)


@pytest.mark.parametrize("backbone", RANKING)
def test_the_first_step_is_the_full_models_and_every_trimmer_has_a_gradient(backbone: BackboneName) -> None:
    model, batch = model_of(backbone, TrimmerConfig()), small_batch(6)
    answers = compared(model, batch, HARD)
    assert answers.trimmed_BA is not None and answers.full_BA is not None
    for trimmed, full in zip(answers.trimmed_BA, answers.full_BA, strict=True):
        torch.testing.assert_close(trimmed, full)
    task_of(model, batch).losses(model, batch, 0.3).total.backward()
    assert model.trimmers is not None
    for name, parameter in model.trimmers.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def scored(logits_B2: Tensor) -> Tensor:
    return logits_B2[:, 1]


def own_matching(said: object, size: int) -> Tensor:
    """(B,) matching scores of the pairs that belong together."""
    assert isinstance(said, Contrasted | Ranked)
    return said.scores_BC[:, 0] if isinstance(said, Ranked) else scored(said.matching_N2[:size])


@torch.no_grad()
@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize("backbone", RANKING)
def test_masked_and_packed_execution_agree(backbone: BackboneName, policy: str) -> None:
    model, batch = model_of(backbone, MIXED, policy), small_batch(6)
    inputs = scale(batch.pixels), batch.token_ids, batch.token_mask
    masked, packed = model.trimming(*inputs[1:], threshold), model.trimming(*inputs[1:])
    assert masked is not None and packed is not None
    by_mask, by_packing = (model.classify(*inputs, [each]) for each in (masked, packed))
    torch.testing.assert_close(by_packing, by_mask, rtol=0, atol=1e-9)
    assert not torch.allclose(model.classify(*inputs, []), by_mask)
    units = units_of(model.backbone, batch.token_mask)
    costs = [model.macs(each.decisions, units) for each in (masked, packed)]
    torch.testing.assert_close(*costs, check_dtype=False)
    own = compared(model, batch, HARD)  # what training saw of the pairs that belong together is the same
    torch.testing.assert_close(own_matching(own.trimmed_BA, 6), scored(by_mask), rtol=0, atol=1e-9)
    torch.testing.assert_close(model.macs(own.decisions, units), costs[0], check_dtype=False)


@torch.no_grad()
@pytest.mark.parametrize("backbone", RANKING)
def test_pictures_and_texts_are_trimmed_alone_and_matching_by_both(backbone: BackboneName) -> None:
    model, batch = model_of(backbone, MIXED), small_batch(6)
    pixels, ids, mask = scale(batch.pixels), batch.token_ids, batch.token_mask
    kept: list[Mapping[str, Tensor]] = []
    for given in ((pixels, ids, mask), (pixels, ids.roll(1, 0), mask.roll(1, 0)), (pixels.roll(1, 0), ids, mask)):
        trimming = MaskedTrimming(model.trimmers)  # type: ignore[arg-type]
        model.classify(*given, [trimming])
        kept.append({name: each.present_BN for name, each in trimming.decisions.items()})  # type: ignore[misc]
    assert len(kept[0]) == sum(len(step.advances) for step in model.backbone.schedule)
    for name, present in kept[0].items():
        if name.startswith("vision"):
            assert torch.equal(present, kept[1][name])
        elif name.startswith("text"):
            assert torch.equal(present, kept[2][name])
    fusion = [name for name in kept[0] if name.startswith("fusion")]
    assert any(not torch.equal(kept[0][name], kept[2][name]) for name in fusion)


@torch.no_grad()
@pytest.mark.parametrize(
    ("backbone", "policy"),
    [
        ("albef", "smarttrim"),
        ("blip", "smarttrim"),
        ("blip", "local"),
        ("meter", "smarttrim"),
        ("meter", "local"),
    ],
)
def test_trimmed_ranks_are_those_of_a_sort_of_all_pairs(tmp_path: Path, backbone: BackboneName, policy: str) -> None:
    """Packed, each image and text encoded once, against every pair for itself, masked."""
    model = RetrievalModel(lively(backbone).double(), MIXED, POLICIES[policy]).eval()
    folder = split(tmp_path / "test", 9)
    source = Source(split=folder, loader=loader_of(model.backbone.config), tokenizer=TOKENIZER)

    def normalise(pixels: Tensor) -> Tensor:
        return source.normalise(pixels).double()

    images = source.batches(EveryImage(), 4, Process())
    asked = normalise, source.tokenize, 4, Process(), None, True, model.methods
    found = rank_split(model.backbone, encode_split(model.backbone, images, *asked), 5, Process(), model.methods)
    (batch,) = source.batches(EveryImage(), 100, Process())
    ids, mask = source.tokenize([said for captions in batch.captions for said in captions])
    owner = [number for number, captions in enumerate(batch.captions) for _ in captions]
    similarity, matching = torch.zeros(2, len(batch), len(owner))
    for i in range(len(batch)):
        pixels = normalise(batch.pixels[i : i + 1]).expand(len(owner), -1, -1, -1)
        if model.backbone.has_contrast:
            similarity[i] = similar(model.backbone, pixels, ids, mask, [MaskedTrimming(model.trimmers)])  # type: ignore[arg-type]
        matching[i] = scored(model.classify(pixels, ids, mask, [MaskedTrimming(model.trimmers)]))  # type: ignore[arg-type]
        if backbone == "blip":
            matching[i] += similarity[i]
    args, top = (similarity.tolist(), matching.tolist()), 5 if model.backbone.has_contrast else len(owner)
    wanted = [by_sort(args[0][i], args[1][i], [of == i for of in owner], top) for i in sorted(set(owner))]
    assert found.image_Q.tolist() == wanted
    args = similarity.T.tolist(), matching.T.tolist()
    rights = [[i == of for i in range(len(batch))] for of in owner]
    assert found.text_T.tolist() == [by_sort(args[0][t], args[1][t], rights[t], top) for t in range(len(owner))]


def similar(model: Backbone, pixels: Tensor, ids: Tensor, mask: Tensor, methods: list[Intervention]) -> Tensor:
    image, text = model.encode_image(pixels, methods), model.encode_text(ids, mask, methods)
    return (model.image_feature(image) * model.text_feature(text)).sum(-1)


def noted_products(model: RetrievalModel) -> list[int]:
    """MACs of each token's product with what is asked for, which is no matrix product to torch's counter."""
    uncounted: list[int] = []

    def note(module: TokenTrimmer, _: object, scores: Tensor) -> None:
        if module.ask is not None:
            uncounted.append(scores.numel() * module.inner)

    for module in model.modules():
        if isinstance(module, TokenTrimmer):
            module.register_forward_hook(note)
    return uncounted


@torch.no_grad()
@pytest.mark.parametrize("trimmed", [False, True], ids=["full", "trimmed"])
@pytest.mark.parametrize("backbone", RANKING)
def test_a_pair_costs_what_torchs_flop_counter_counts(backbone: BackboneName, trimmed: bool) -> None:
    model, batch = model_of(backbone, MIXED if trimmed else None), small_batch(1)
    length = int(batch.token_mask.sum())
    inputs = scale(batch.pixels), batch.token_ids[:, :length], batch.token_mask[:, :length]
    uncounted = noted_products(model)
    methods, counter = model.methods(), FlopCounterMode(display=False)
    with counter:
        model.classify(*inputs, methods)
        for projection in matching_parts(model.backbone)[1:]:  # type: ignore[index]
            projection(torch.randn(1, 32))
    units = units_of(model.backbone, inputs[2])
    decisions = methods[0].decisions if trimmed else {}  # type: ignore[attr-defined]
    assert counter.get_total_flops() + 2 * sum(uncounted) == 2 * int(model.macs(decisions, units))


@torch.no_grad()
@pytest.mark.parametrize("trimmed", [False, True], ids=["full", "trimmed"])
@pytest.mark.parametrize("backbone", RANKING)
def test_a_step_costs_what_torchs_flop_counter_counts(backbone: BackboneName, trimmed: bool) -> None:
    model, batch = model_of(backbone, MIXED if trimmed else None), small_batch(4)
    length = batch.token_ids.shape[1]
    mask, counter, uncounted = torch.ones_like(batch.token_mask), FlopCounterMode(display=False), noted_products(model)
    with counter:
        model(scale(batch.pixels), batch.token_ids, mask, HARD if trimmed else None, True, Pairing.of(batch))
    ways = 2 * 4 * 4 * 16 if model.backbone.has_contrast else 0  # similarities, by which negatives are drawn
    counted = counter.get_total_flops() / 2 + sum(uncounted) - ways
    assert 3 * counted / 4 == pytest.approx(classification_macs(model, length, trimmed))


@pytest.mark.parametrize("backbone", ["albef", "meter"])
def test_pairs_are_learned(backbone: BackboneName) -> None:
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    model, batch = RetrievalModel(small_model(backbone), TrimmerConfig()).train(), small_batch(6)
    task, seen = task_of(model, batch), list[float]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(20):
        losses = task.losses(model, batch, 0.1)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        seen.append(float(losses.named["task"].detach()))
    assert seen[-1] < 0.5 * seen[0] and float(losses.scalars["accuracy"]) > 0.9


def test_a_backbone_without_matching_is_refused() -> None:
    with pytest.raises(UserError, match=r"wants matching, but clip has none; pre-train with --model\.backbone albef, "):
        RetrievalModel(small_model("clip"), None)
