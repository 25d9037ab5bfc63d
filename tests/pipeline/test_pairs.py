"""NLVR2's two pictures with one text, read apart or at once: against plain forwards, masked, packed, and counted."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from data_prep.errors import UserError
from data_prep.shapes_published import write_published
from data_prep.sources import SourceConfig, prepare
from pipeline.data.batch import ImageTextBatch
from pipeline.data.loader import LoaderConfig, eval_loader, train_loader
from pipeline.data.text import Tokenizer, TokenizerConfig
from pipeline.data.transforms import TransformConfig, eval_image
from pipeline.measure.flops import StepCounts, cross_attention_macs
from pipeline.measure.model_flops import FlopsConfig, count_macs, steps_macs
from pipeline.models.backbone import PairWay
from pipeline.models.blocks import PairAttention
from pipeline.models.config import BackboneName
from pipeline.models.packing import halves, pack, stacked, unpack
from pipeline.models.schedule import TokenStream
from pipeline.process import Process
from pipeline.pruning.elip import ElipConfig
from pipeline.tasks.classes import NLVR2
from pipeline.tasks.classification import ClassificationModel
from pipeline.trimming.cost import units_of
from pipeline.trimming.smarttrim import threshold
from pipeline.trimming.trimmers import SMARTTRIM, Policy, TokenTrimmer, TrimmerConfig
from pipeline.trimming.vision_only import ReductionConfig
from tests.pipeline.small import scale, small_batch, small_config, small_model

WAYS: list[tuple[BackboneName, PairWay]] = [
    ("albef", "both"), ("albef", "passes"), ("blip", "both"), ("blip", "passes"), ("meter", "passes"),
]  # fmt: skip
MIXED = TrimmerConfig(keep_bias=0.1, last_std=0.5)
KEEPING, TRIMMING = TrimmerConfig(keep_bias=50.0), TrimmerConfig(keep_bias=-50.0)
ELIP = ElipConfig(depths=(2, 1, 1), ratios=(0.8, 0.5))


@pytest.fixture
def doubles() -> object:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def pairs(size: int, seed: int = 0) -> tuple[Tensor, ImageTextBatch]:
    """Normalised pictures (B, 2, 3, H, W), and a batch with their texts."""
    left, right = small_batch(size, seed), small_batch(size, seed + 100)
    return torch.stack([scale(left.pixels), scale(right.pixels)], 1), left


def model_of(name: BackboneName, way: PairWay | None, trimmers: object = None, **more: object) -> ClassificationModel:
    torch.manual_seed(0)
    return ClassificationModel(small_model(name), trimmers, classes=NLVR2, pair=way, **more).eval()  # type: ignore[arg-type]


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize(("name", "way"), WAYS)
@pytest.mark.parametrize("kept", [None, ELIP], ids=["plain", "elip"])
@torch.no_grad()
def test_masked_and_packed_execution_agree(name: BackboneName, way: PairWay, kept: ElipConfig | None) -> None:
    model = model_of(name, way, MIXED, pruning=kept)
    pixels, batch = pairs(5)
    inputs = batch.token_ids, batch.token_mask
    masked, packed = model.trimming(*inputs, threshold), model.trimming(*inputs)
    assert masked is not None and packed is not None
    by_mask, by_packing = (model.classify(pixels, *inputs, [each]) for each in (masked, packed))
    assert by_mask.shape == (5, 2)
    torch.testing.assert_close(by_packing, by_mask, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(model.classify(pixels, *inputs, []), by_mask)
    units = units_of(model.backbone, batch.token_mask)
    costs = [model.macs(each.decisions, units) for each in (masked, packed)]
    torch.testing.assert_close(*costs, check_dtype=False)
    assert costs[0].shape == (5,) and (costs[0] < model.full_macs(units)).all()


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize(("name", "way"), WAYS)
@torch.no_grad()
def test_an_instance_is_judged_alike_in_every_batch(name: BackboneName, way: PairWay) -> None:
    model = model_of(name, way, MIXED)
    pixels, batch = pairs(4)
    ids, mask = batch.token_ids, batch.token_mask
    whole = model.classify(pixels, ids, mask, [model.trimming(ids, mask)])  # type: ignore[list-item]
    for row in range(4):
        one = slice(row, row + 1)
        own = model.trimming(ids[one], mask[one])
        assert own is not None
        torch.testing.assert_close(model.classify(pixels[one], ids[one], mask[one], [own]), whole[one])


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("name", ["albef", "blip", "meter"])
@torch.no_grad()
def test_two_passes_are_the_text_with_each_picture(name: BackboneName) -> None:
    model = model_of(name, "passes")
    pixels, batch = pairs(3)
    ids, mask = batch.token_ids, batch.token_mask
    backbone, seen = model.backbone, []
    text = backbone.begin_fusion(backbone.encode_text(ids, mask), ids, mask)
    for side in (0, 1):
        more = {"image_type": 1 + side} if name == "meter" else {}
        seen.append(backbone.fuse(text, backbone.encode_image(pixels[:, side]), **more).features_BF)  # type: ignore[arg-type]
    torch.testing.assert_close(model.classify(pixels, ids, mask, []), model.cls_head(torch.cat(seen, -1)))


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("name", ["albef", "blip"])
@torch.no_grad()
def test_both_at_once_begin_as_what_one_picture_was_to_the_backbone(name: BackboneName) -> None:
    alone = small_model(name).eval()
    pixels, batch = pairs(3)
    ids, mask = batch.token_ids, batch.token_mask
    text = alone.begin_fusion(alone.encode_text(ids, mask), ids, mask)
    wanted = alone.fuse(text, alone.encode_image(pixels[:, 0])).features_BF
    model = model_of(name, "both")
    same = pixels[:, :1].expand(-1, 2, -1, -1, -1)
    torch.testing.assert_close(model.classify(same, ids, mask, []), model.cls_head(wanted))
    apart = model.classify(pixels, ids, mask, [])
    assert not torch.allclose(apart, model.cls_head(wanted))
    # Which picture is which is learned: until then they may change places.
    torch.testing.assert_close(model.classify(pixels.flip(1), ids, mask, []), apart)


def test_every_weight_of_both_is_trained() -> None:
    model = model_of("blip", "both").train()
    pixels, batch = pairs(4)
    model.classify(pixels, batch.token_ids, batch.token_mask, []).logsumexp(1).sum().backward()
    merging = [name for name, _ in model.named_parameters() if "merge_layer" in name]
    assert sorted({name.split(".")[4] for name in merging}) == ["1"]  # the upper one of two layers
    attending = [p for name, p in model.named_parameters() if "text_encoder" in name and "crossattention" in name]
    assert attending and all(p.grad is not None and p.grad.abs().sum() > 0 for p in attending if p.ndim > 1)


@pytest.mark.parametrize("name", ["meter", "blip"])
def test_costs_are_those_that_flops_counts(name: BackboneName) -> None:
    model = model_of(name, None)
    _, batch = pairs(2)
    found_B = model.full_macs(units_of(model.backbone, batch.token_mask))
    for length, found in zip(batch.token_mask.sum(1).tolist(), found_B.tolist(), strict=True):
        counted = count_macs(small_config(backbone=name), FlopsConfig(task="nlvr2", text_length=length))["total"]
        if name == "blip":
            counted += 2 * length * 32**2  # the official model joins from layer 6 on, which a small one has not
        assert found == counted


@pytest.mark.parametrize(("name", "way"), WAYS)
@pytest.mark.parametrize("trimmers", [None, KEEPING, MIXED, TRIMMING], ids=["full", "keeping", "mixed", "trimming"])
@torch.no_grad()
def test_a_pair_costs_what_torchs_flop_counter_counts(
    name: BackboneName, way: PairWay, trimmers: TrimmerConfig | None
) -> None:
    model = model_of(name, way, trimmers)
    pixels, batch = pairs(1, 3)
    length, uncounted = int(batch.token_mask.sum()), []
    ids, mask = batch.token_ids[:, :length], batch.token_mask[:, :length]

    def note(module: TokenTrimmer, _: object, scores: Tensor) -> None:
        # A token's product with what is asked for is no matrix product to the counter.
        uncounted.append(scores.numel() * module.inner)

    for module in model.modules():
        if isinstance(module, TokenTrimmer):
            module.register_forward_hook(note)
    trimming = model.trimming(ids, mask)
    with FlopCounterMode(display=False) as counter:
        model.classify(pixels, ids, mask, [] if trimming is None else [trimming])
    found = model.macs({} if trimming is None else trimming.decisions, units_of(model.backbone, mask))
    assert counter.get_total_flops() + 2 * sum(uncounted) == 2 * int(found)


@pytest.mark.parametrize("policy", [SMARTTRIM, Policy(tokens="local")], ids=["smarttrim", "local"])
@pytest.mark.parametrize("trims", [False, True], ids=["untrimmed", "trimmed"])
@torch.no_grad()
def test_a_pairs_text_is_encoded_twice_only_where_its_trimmers_look_at_the_picture(trims: bool, policy: Policy) -> None:
    """METER with trimmers: what a pass executes without them, and with, is what it is counted as."""
    model = model_of("meter", "passes", TRIMMING, policy=policy)
    pixels, batch = pairs(1, 3)
    length = int(batch.token_mask.sum())
    ids, mask = batch.token_ids[:, :length], batch.token_mask[:, :length]
    trimming, units = model.trimming(ids, mask), units_of(model.backbone, mask)
    assert trimming is not None
    with FlopCounterMode(display=False) as counter:
        model.classify(pixels, ids, mask, [trimming] if trims else [])
    found = float((model.macs(trimming.decisions, units) if trims else model.full_macs(units)).sum())
    assert counter.get_total_flops() / 2 == pytest.approx(found, rel=0.01 if trims and policy.asks else 1e-9)
    if trims:
        assert len(trimming.decisions["text_0_text"].tokens_B) == (2 if policy.asks else 1)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("working", [0, 1, 3, 4])
@torch.no_grad()
def test_what_joins_two_pictures_is_counted_whole_whichever_heads_work(merged: bool, working: int) -> None:
    attention = PairAttention(16, 24, 4, merged, 1e-12, 0.0).eval()
    text, first, other = (pack(TokenStream(torch.randn(1, *shape))) for shape in ((3, 16), (5, 24), (7, 24)))
    heads_BH = (torch.arange(4) < working).float()[None]
    with FlopCounterMode(display=False) as counter:
        attention(text, [first, other], heads_BH)
    tokens, source, none = (torch.tensor([count]) for count in (3, 12, 0))
    counts = StepCounts(tokens, source, none, heads_BH.sum(1))
    assert counter.get_total_flops() == 2 * float(cross_attention_macs(counts, attention, counts.cross_heads / 4))


@pytest.mark.parametrize(("name", "way"), WAYS)
@torch.no_grad()
def test_where_all_is_kept_the_cost_is_the_full_models_and_the_trimmers(name: BackboneName, way: PairWay) -> None:
    model = model_of(name, way, KEEPING)
    pixels, batch = pairs(3)
    units = units_of(model.backbone, batch.token_mask)
    answers = model(pixels, batch.token_ids, batch.token_mask, threshold, True)
    torch.testing.assert_close(answers.trimmed_BA, answers.full_BA)
    cost = model.cost_model()
    spent = cost.of(answers.decisions, units) - cost.own(answers.decisions, units)
    # METER's trimmers have the text encoded with each picture, BLIP's at all: the full model has no need of that.
    again = [steps_macs(model.backbone.text_steps, {"text": 1 + int(n)}) for n in units.text] if name != "albef" else 0
    torch.testing.assert_close(spent, cost.full(units) + torch.as_tensor(again))
    torch.testing.assert_close(cost.at_share(units, 1.0), cost.of(answers.decisions, units))
    assert all(float(share) == 1 for share in cost.kept_shares(answers.decisions, units).values())


@pytest.mark.parametrize("method", ["evit", "trips", "tome"])
@pytest.mark.parametrize(("name", "way"), [("albef", "both"), ("meter", "passes")])
@torch.no_grad()
def test_reduced_towers_are_counted_as_they_run(name: BackboneName, way: PairWay, method: Any) -> None:
    model = model_of(name, way, ReductionConfig(name=method))
    assert model.trimmers is not None
    model.trimmers.set_share(0.5)
    pixels, batch = pairs(3)
    units, run = units_of(model.backbone, batch.token_mask), model.trimming(batch.token_ids, batch.token_mask)
    assert run is not None
    assert model.classify(pixels, batch.token_ids, batch.token_mask, [run]).isfinite().all()
    torch.testing.assert_close(model.macs(run.decisions, units), model.cost_model().at_share(units, 0.5))


@pytest.mark.parametrize(("name", "way"), [("albef", "both"), ("meter", "passes")])
@torch.no_grad()
def test_drawn_tokens_are_drawn_for_both_pictures(name: BackboneName, way: PairWay) -> None:
    model = model_of(name, way, TrimmerConfig(), policy=Policy(tokens="random", heads="all"))
    assert model.trimmers is not None
    model.trimmers.set_share(0.5)
    pixels, batch = pairs(3)
    masked = model.trimming(batch.token_ids, batch.token_mask, threshold)
    packed = model.trimming(batch.token_ids, batch.token_mask)
    assert masked is not None and packed is not None
    found = [model.classify(pixels, batch.token_ids, batch.token_mask, [each]) for each in (masked, packed)]
    torch.testing.assert_close(*found)


def test_what_a_backbone_cannot_is_refused() -> None:
    with pytest.raises(UserError, match=r"trim\.pair=both does not go with this meter, which has passes"):
        model_of("meter", "both")
    model = model_of("albef", "both")
    with pytest.raises(UserError, match=r"trim\.pair=passes does not go with this albef, which has both"):
        ClassificationModel(model.backbone, None, classes=NLVR2, pair="passes")
    assert ClassificationModel(model.backbone, MIXED, classes=NLVR2).backbone is model.backbone  # goes on from it


def test_streams_come_apart_as_they_were_put_together() -> None:
    present = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    origin = torch.arange(-1, 2).expand(2, -1)
    first, second = (TokenStream(torch.randn(2, 3, 4), there, origin) for there in (present, present.flip(0)))
    for change in (lambda stream: stream, pack):
        one, other = halves(stacked(change(first), change(second)))
        for found, wanted in ((one, first), (other, second)):
            found = unpack(found)
            torch.testing.assert_close(found.x * present_of(found), wanted.x * present_of(wanted))
            assert torch.equal(found.present, wanted.present)  # type: ignore[arg-type]


def present_of(stream: TokenStream) -> Tensor:
    assert stream.present is not None
    return stream.present[..., None].float()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pairs")
    write_published("nlvr2", root / "raw", {"train": 4, "test1": 2}, 32, 0)
    prepare(SourceConfig(name="nlvr2", root=str(root / "raw")), root / "data", workers=1)
    return root


@pytest.mark.parametrize("workers", [0, 1])
def test_both_pictures_are_loaded_left_first(shards: Path, workers: int) -> None:
    config = LoaderConfig(height=32, width=32, max_tokens=9, workers=workers)
    tokenizer = Tokenizer.train(["both pictures have a star"], TokenizerConfig(vocab_size=64))
    given = {"text": "pairs", "unit": "pair", "config": config, "tokenizer": tokenizer, "process": Process()}
    (batch,) = eval_loader(shards / "data/test1", batch_size=99, **given)  # type: ignore[arg-type]
    assert batch.pixels.shape == (8, 2, 3, 32, 32) and set(batch.labels.tolist()) == {0, 1}
    for row, name in enumerate(batch.ids):
        stem = name.rpartition("-")[0]
        for side in (0, 1):
            data = (shards / f"raw/images/test1/{stem}-img{side}.png").read_bytes()
            assert (eval_image(data, config) == batch.pixels[row, side].permute(1, 2, 0).numpy()).all()
    assert len(set(batch.groups)) == 4 and set(batch.clusters) == {"test1-0"}


def test_the_second_picture_is_augmented_by_itself(shards: Path) -> None:
    config = LoaderConfig(height=32, width=32, max_tokens=9, workers=0, streams=1, crop_scale=(0.3, 0.6))
    tokenizer = Tokenizer.train(["both pictures have a star"], TokenizerConfig(vocab_size=64))
    given = {"text": "pairs", "unit": "pair", "tokenizer": tokenizer, "process": Process(), "config": config}
    runs = [
        next(iter(train_loader([(shards / "data/train", 1.0)], seed=seed, global_batch=4, steps=1, **given)))  # type: ignore[arg-type]
        for seed in (0, 0)
    ]
    assert torch.equal(runs[0].pixels, runs[1].pixels)
    plain = TransformConfig(height=32, width=32)
    for row, name in enumerate(runs[0].ids):
        for side in (0, 1):
            (path,) = shards.glob(f"raw/images/train/0/{name.rpartition('-')[0]}-img{side}.png")
            own = eval_image(path.read_bytes(), plain)
            assert (own != runs[0].pixels[row, side].permute(1, 2, 0).numpy()).any()


def test_single_pictures_are_no_pairs(tmp_path: Path) -> None:
    sizes = {"train": 4, "val": 0, "test": 0, "unseen": 0}
    prepare(SourceConfig(name="shapes", image_size=32, sizes=sizes), tmp_path, workers=1)
    tokenizer = Tokenizer.train(["a star"], TokenizerConfig(vocab_size=64))
    config = LoaderConfig(height=32, width=32, max_tokens=9, workers=0)
    given = {"text": "pairs", "unit": "pair", "config": config, "tokenizer": tokenizer, "process": Process()}
    with pytest.raises(UserError, match="has 1 picture where a left and a right one are wanted"):
        list(eval_loader(tmp_path / "train", batch_size=99, **given))  # type: ignore[arg-type]
