"""Captioning: cached and uncached, masked and packed telling agree under trimming; costs; what is refused."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from data_prep.errors import UserError
from pipeline.data.text import Tokenizer, TokenizerConfig
from pipeline.generation import BeamConfig, generate, prompt_ids
from pipeline.models.blip_tasks import BlipCaptioner
from pipeline.models.past import Past
from pipeline.models.schedule import Intervention, TokenStream
from pipeline.tasks.captioning import CaptioningModel
from pipeline.tasks.classes import Captions
from pipeline.tasks.classification import Answers, ClassificationTask, SmartTrimConfig
from pipeline.trimming.cost import Units, units_of
from pipeline.trimming.smarttrim import GumbelGate, MaskedTrimming, PackedTrimming, threshold
from pipeline.trimming.trimmers import HeadTrimmer, Policy, TokenTrimmer, TrimmerConfig, Trimmers
from tests.pipeline.small import MAX_TOKENS, WORDS, scale, small_batch, small_model

MIXED = TrimmerConfig(keep_bias=0.5, last_std=0.5)
GIVEN = 3
PROMPT = torch.tensor([[2, 7, 8]])
END = 5


@pytest.fixture(autouse=True)
def doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def model_with(
    trimmers: TrimmerConfig | None, beams: int = 3, seed: int = 0, policy: Policy | None = None
) -> CaptioningModel:
    """Weights far apart, so that texts differ."""
    backbone = small_model("blip", seed)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    more = () if policy is None else (policy,)
    return CaptioningModel(backbone, trimmers, *more, classes=Captions("captioning", (), GIVEN, beams)).eval()


def picky(model: CaptioningModel) -> None:
    """Has the decoder's layers take tokens out, which a fresh one hardly does."""
    assert isinstance(model.trimmers, Trimmers)
    for name in ("decoder_0_text", "decoder_1_text"):
        tokens = model.trimmers.part(name).tokens
        assert isinstance(tokens, TokenTrimmer)
        with torch.no_grad():
            tokens.down.weight *= 10
            tokens.local[-1].bias.zero_()  # type: ignore[operator, union-attr]


def one_head(model: CaptioningModel) -> None:
    """Leaves each attention its first head alone."""
    assert model.trimmers is not None
    for module in model.trimmers.modules():
        if isinstance(module, HeadTrimmer):
            last = module.score[-1]
            with torch.no_grad():
                last.weight.zero_()  # type: ignore[operator, union-attr]
                last.bias.fill_(-1.0)  # type: ignore[operator, union-attr]
                last.bias[0] = 1.0  # type: ignore[index, operator]


EXTREMES: dict[str, tuple[TrimmerConfig, Callable[[CaptioningModel], None]]] = {
    "mixed": (MIXED, picky),
    "everything kept": (TrimmerConfig(keep_bias=9.0), lambda model: None),
    "nothing but CLS, no head": (TrimmerConfig(keep_bias=-9.0), lambda model: None),
    "one head": (MIXED, one_head),
}


def extreme_model(extreme: str, beams: int) -> CaptioningModel:
    trimmers, change = EXTREMES[extreme]
    model = model_with(trimmers, beams)
    change(model)
    return model


@dataclass
class Recording:
    """A captioner that remembers what it was asked, and what it said."""

    backbone: BlipCaptioner
    methods: Sequence[Intervention]
    asked: list[tuple[Tensor, int, Tensor]] = field(default_factory=list)

    def next_scores(self, ids_RL: Tensor, image: TokenStream, past: Past) -> Tensor:
        scores = self.backbone.next_scores(ids_RL, image, past, self.methods)
        self.asked.append((ids_RL, image.queries, scores))
        return scores


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("extreme", list(EXTREMES))
def test_cached_and_uncached_telling_agree_under_trimming(extreme: str, beams: int) -> None:
    model = extreme_model(extreme, beams)
    assert isinstance(model.trimmers, Trimmers)
    pixels = scale(small_batch(4).pixels)
    search = BeamConfig(beams=beams, min_length=6, max_length=MAX_TOKENS)
    packed = PackedTrimming(model.trimmers)
    speaker = Recording(model.backbone, [packed])
    generate(speaker, PROMPT, model.backbone.encode_image(pixels, [packed]), search, END)
    assert len(speaker.asked) > 2
    for ids, queries, scores in speaker.asked:
        for again in (PackedTrimming(model.trimmers), MaskedTrimming(model.trimmers)):
            image = replace(model.backbone.encode_image(pixels, [again]), queries=queries)
            whole = model.backbone.next_scores(ids, image, Past(), [again])
            torch.testing.assert_close(whole, scores, rtol=0, atol=1e-9)
            for name, decision in packed.decisions.items():
                other = again.decisions[name]
                assert torch.equal(decision.tokens_B.double(), other.tokens_B.double())
                assert decision.cross_BH is None or torch.equal(decision.cross_BH, other.cross_BH)  # type: ignore[arg-type]


@torch.no_grad()
@pytest.mark.parametrize("policy", [Policy(), Policy(tokens="local", heads="all")], ids=["smarttrim", "local"])
@pytest.mark.parametrize("seed", [0, 1])
def test_masked_and_packed_execution_agree(policy: Policy, seed: int) -> None:
    model, batch = model_with(MIXED, seed=seed, policy=policy), small_batch(5, seed)
    inputs = scale(batch.pixels), batch.token_ids, batch.token_mask
    masked, packed = model.trimming(*inputs[1:], threshold), model.trimming(*inputs[1:])
    assert masked is not None and packed is not None
    by_mask, by_packing = (model.classify(*inputs, [each]) for each in (masked, packed))
    torch.testing.assert_close(by_packing, by_mask, rtol=0, atol=1e-9)
    assert by_mask.shape == (len(model.classes.targets(batch)), WORDS)
    assert not torch.allclose(model.classify(*inputs, []), by_mask)
    units = units_of(model.backbone, batch.token_mask)
    costs = [model.macs(each.decisions, units) for each in (masked, packed)]
    torch.testing.assert_close(*costs, check_dtype=False)
    assert costs[0].sum() < model.full_macs(units).sum()


def test_a_decoder_takes_tokens_out_of_the_picture_and_never_out_of_its_text() -> None:
    model, batch = model_with(MIXED), small_batch(5)
    picky(model)
    trimming = MaskedTrimming(model.trimmers)  # type: ignore[arg-type]
    model.classify(scale(batch.pixels), batch.token_ids, batch.token_mask, [trimming])
    assert {decision.group for decision in trimming.decisions.values()} == {"vision"}
    assert list(trimming.decisions)[-1] == "decoder_1_text"
    kept = [decision.tokens_B for decision in trimming.decisions.values()]
    assert all((after <= before).all() for before, after in itertools.pairwise(kept))
    assert (kept[-1] < kept[3]).any(), "the decoder has taken out tokens that the tower kept"


def test_the_first_step_is_the_full_models_and_every_trimmer_has_a_gradient() -> None:
    model, batch = model_with(TrimmerConfig()), small_batch(6)
    answers: Answers = model(scale(batch.pixels), batch.token_ids, batch.token_mask, GumbelGate(0.0, 1.0), True)
    torch.testing.assert_close(answers.trimmed_BA, answers.full_BA)
    task = ClassificationTask(model, scale, 1.5, SmartTrimConfig(), units_of(model.backbone, batch.token_mask))
    losses = task.losses(model, batch, 0.3)
    assert {"task", "full", "divergence", "cost"} == losses.named.keys()
    losses.total.backward()
    assert model.trimmers is not None
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not name.startswith("trimmers.") or parameter.grad.abs().max() > 0, name


def test_captions_are_learned() -> None:
    model, batch = model_with(None, seed=3).train(), small_batch(8)
    task = ClassificationTask(model, scale, 1.0, SmartTrimConfig(), units_of(model.backbone, batch.token_mask))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        losses = task.losses(model, batch, 0.1)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    assert float(losses.scalars["accuracy"]) > 0.9


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 2])
def test_telling_costs_what_torchs_flop_counter_counts(beams: int) -> None:
    model = model_with(None, beams)
    search, counter = BeamConfig(beams=beams, min_length=8, max_length=8), FlopCounterMode(display=False)
    with counter:
        told = model.tell(scale(small_batch(1).pixels), PROMPT, search, END)
    assert told.ids_BM.shape == (1, 8) and told.finite_B.all()
    patches = model.backbone.config.vision.patches
    units = Units(torch.full_like(told.lengths_B, patches), told.lengths_B - 1)
    assert counter.get_total_flops() == 2 * int(model.full_macs(units))


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("extreme", list(EXTREMES))
def test_trimmed_telling_costs_what_torchs_flop_counter_counts(extreme: str, beams: int) -> None:
    model = extreme_model(extreme, beams)
    search, counter = BeamConfig(beams=beams, min_length=8, max_length=8), FlopCounterMode(display=False)
    uncounted = []  # a token's product with what is asked for is no matrix product to the counter

    def note(module: TokenTrimmer, _: object, scores: Tensor) -> None:
        uncounted.append(scores.numel() * module.inner)

    for module in model.modules():
        if isinstance(module, TokenTrimmer):
            module.register_forward_hook(note)
    with counter:
        told = model.tell(scale(small_batch(1).pixels), PROMPT, search, END)
    patches = model.backbone.config.vision.patches
    units = Units(torch.full_like(told.lengths_B, patches), told.lengths_B - 1)
    assert counter.get_total_flops() + 2 * sum(uncounted) == 2 * int(model.macs(told.decisions, units))


@torch.no_grad()
def test_learning_a_caption_costs_as_much_as_telling_it_with_one_beam() -> None:
    many, one = model_with(None, beams=3), model_with(None, beams=1)
    units = units_of(one.backbone, small_batch(3).token_mask)
    torch.testing.assert_close(many.training_cost_model().full(units), one.cost_model().full(units))
    assert (many.full_macs(units) >= one.full_macs(units)).all()


@torch.no_grad()
def test_a_picture_is_told_of_alike_in_any_company() -> None:
    model, pixels = model_with(MIXED), scale(small_batch(6).pixels)
    search = BeamConfig(max_length=MAX_TOKENS)
    together = model.tell(pixels, PROMPT, search, END)
    for row in range(len(pixels)):
        alone = model.tell(pixels[row : row + 1], PROMPT, search, END)
        assert torch.equal(alone.ids_BM[0], together.ids_BM[row])
        assert alone.lengths_B[0] == together.lengths_B[row]
    assert len(set(map(tuple, together.ids_BM.tolist()))) > 1


@torch.no_grad()
def test_scores_that_are_no_numbers_are_noticed() -> None:
    model, pixels = model_with(None), scale(small_batch(2).pixels)
    pixels[1] = torch.nan
    assert model.tell(pixels, PROMPT, BeamConfig(max_length=6), END).finite_B.tolist() == [True, False]


def test_words_to_tell_lie_behind_the_prompt() -> None:
    batch = small_batch(4)
    targets = Captions("captioning", (), GIVEN, 3).targets(batch)
    rows = zip(batch.token_ids, batch.token_mask.sum(1).tolist(), strict=True)
    assert targets.tolist() == [word for ids, length in rows for word in ids[GIVEN:length].tolist()]


def test_a_prompt_stands_before_every_text_and_is_cut_with_it() -> None:
    tokenizer = Tokenizer.train(["a picture of two red stars"], TokenizerConfig(vocab_size=60))
    prompted = tokenizer.behind("A picture of")
    ids, mask = prompted.encode(["Two red stars.", "red"], 6)
    assert tokenizer.text(ids[0, 1:].tolist()) == "a picture of two"
    assert tokenizer.text(ids[1, 1:].tolist()) == "a picture of red"
    assert mask.sum(1).tolist() == [6, 6]
    given = prompt_ids(tokenizer, "a picture of")
    assert torch.equal(given[0], ids[0, : given.shape[1]]) and given.shape == (1, 4)
    assert tokenizer.text(tokenizer.encode(["red"], 6)[0][0, 1:].tolist()) == "red"


def test_a_backbone_without_a_decoder_is_refused() -> None:
    with pytest.raises(UserError, match="captioning wants a decoder, which albef has not"):
        CaptioningModel(small_model("albef"), None)
