"""Answers by a decoder: masked and packed ranking agree under trimming; what is learned; costs."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from data_prep.errors import UserError
from pipeline.data.batch import ImageTextBatch
from pipeline.data.text import Tokenizer, TokenizerConfig
from pipeline.models.albef import Albef
from pipeline.models.config import BackboneName
from pipeline.tasks.answering import answer_losses
from pipeline.tasks.classification import SmartTrimConfig
from pipeline.tasks.generative_vqa import AnsweringModel, AnsweringTask, RankedAnswers
from pipeline.trimming.cost import units_of
from pipeline.trimming.smarttrim import threshold
from pipeline.trimming.trimmers import SMARTTRIM, Policy, TokenTrimmer, TrimmerConfig
from tests.pipeline.small import WORDS, scale, small_batch, small_model

MIXED = TrimmerConfig(keep_bias=0.1, last_std=0.5)
EXTREMES = [MIXED, TrimmerConfig(keep_bias=9.0), TrimmerConfig(keep_bias=-9.0)]
NAMES = ("red", "blue", "dark red", "2", "2 dogs", "no")
TOKENIZER = Tokenizer.train(NAMES, TokenizerConfig(vocab_size=WORDS - 2))
ANSWERS = RankedAnswers.of(NAMES, TOKENIZER, 3)


@pytest.fixture(autouse=True)
def doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


both = pytest.mark.parametrize("name", ["albef", "blip"])


def model_with(
    trimmers: TrimmerConfig | None,
    seed: int = 0,
    answers: RankedAnswers = ANSWERS,
    policy: Policy = SMARTTRIM,
    name: BackboneName = "blip",
) -> AnsweringModel:
    backbone = small_model(name, seed)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return AnsweringModel(backbone, trimmers, policy, answers).eval()


def asked(size: int, seed: int = 0) -> ImageTextBatch:
    """Questions that annotators answered."""
    batch = small_batch(size, seed)
    told = [{"answers": [NAMES[row % 3]] * 7 + ["no"] * (1 + row % 2)} for row in range(size)]
    return replace(batch, told=told)


@torch.no_grad()
@both
@pytest.mark.parametrize("policy", [SMARTTRIM, Policy(tokens="local")], ids=["smarttrim", "local"])
@pytest.mark.parametrize("trimmers", EXTREMES, ids=["mixed", "everything kept", "nothing but CLS, no head"])
def test_masked_and_packed_ranking_agree(trimmers: TrimmerConfig, policy: Policy, name: BackboneName) -> None:
    model, batch = model_with(trimmers, policy=policy, name=name), small_batch(5)
    inputs = scale(batch.pixels), batch.token_ids, batch.token_mask
    masked, packed = model.trimming(*inputs[1:], threshold), model.trimming(*inputs[1:])
    assert masked is not None and packed is not None
    by_mask, by_packing = (model.classify(*inputs, [each]) for each in (masked, packed))
    assert by_mask.shape == (5, len(NAMES)) and ((by_mask > -1e9).sum(1) == 3).all()
    torch.testing.assert_close(by_packing, by_mask, rtol=0, atol=1e-9)
    units = units_of(model.backbone, batch.token_mask)
    costs = [model.macs(each.decisions, units) for each in (masked, packed)]
    torch.testing.assert_close(*costs, check_dtype=False)
    assert [site for site in packed.decisions if site.startswith("decoder")] == ["decoder_0_text", "decoder_1_text"]
    if name == "blip":
        assert not [site for site in packed.decisions if site.startswith("text")]  # what only guides is run whole
    torch.testing.assert_close(model.cost_shares(*inputs), costs[0] / model.full_macs(units), check_dtype=False)
    full = model.classify(*inputs, [])
    assert torch.allclose(full, by_mask) == (trimmers.keep_bias == 9.0)


@torch.no_grad()
@both
def test_modules_sum_to_the_whole_cost(name: BackboneName) -> None:
    model, batch = model_with(MIXED, name=name), small_batch(5)
    units, trimming = units_of(model.backbone, batch.token_mask), model.trimming(batch.token_ids, batch.token_mask)
    assert trimming is not None
    model.classify(scale(batch.pixels), batch.token_ids, batch.token_mask, [trimming])
    trimmed, full = model.macs_by_module(trimming.decisions, units), model.full_macs_by_module(units)
    assert sum(trimmed.values()) == pytest.approx(float(model.macs(trimming.decisions, units).sum()), rel=1e-6)
    assert sum(full.values()) == pytest.approx(float(model.full_macs(units).sum()), rel=1e-6)
    assert trimmed["text"] > 0  # it guides the picture's trimmers
    assert (full["text"] == 0) == (name == "blip"), "which reads the question with the picture from its words"
    assert trimmed["decoder"] > 0 and full["head"] > 0


@torch.no_grad()
@both
def test_a_question_is_answered_alike_in_any_company(name: BackboneName) -> None:
    model, batch = model_with(MIXED, name=name), small_batch(6)
    inputs = scale(batch.pixels), batch.token_ids, batch.token_mask
    together = model.classify(*inputs, [model.trimming(*inputs[1:])])  # type: ignore[list-item]
    for row in range(6):
        one = tuple(part[row : row + 1] for part in inputs)
        alone = model.classify(*one, [model.trimming(*one[1:])])  # type: ignore[arg-type, list-item]
        torch.testing.assert_close(alone[0], together[row])


@both
def test_training_moves_the_answers_and_every_trimmer_has_a_gradient(name: BackboneName) -> None:
    model, batch = model_with(TrimmerConfig(), name=name).train(), asked(6)
    typical = units_of(model.backbone, batch.token_mask)
    task = AnsweringTask(model, TOKENIZER, scale, 1.3, SmartTrimConfig(), typical)
    taught = task.taught(batch)
    assert taught.rows_A.unique().tolist() == list(range(6))
    assert float(taught.weights_A[0]) == pytest.approx(7 / 8)
    torch.testing.assert_close(taught.weights_A.new_zeros(6).index_add(0, taught.rows_A, taught.weights_A).sum(),
                               torch.tensor(6.0, dtype=taught.weights_A.dtype))  # fmt: skip
    optimizer, seen = torch.optim.AdamW(model.parameters(), lr=2e-3), []
    for step in range(30):
        losses = task.losses(model, batch, 0.3)
        optimizer.zero_grad()
        losses.total.backward()
        if step == 1:
            for own, parameter in model.named_parameters():
                assert parameter.grad is not None, own
                assert not own.startswith("trimmers.") or parameter.grad.abs().max() > 0, own
        optimizer.step()
        seen.append({name: float(loss.detach()) for name, loss in losses.named.items()})
    assert seen[-1]["task"] < 0.6 * seen[0]["task"] and seen[-1]["full"] < 0.6 * seen[0]["full"]
    inputs = scale(batch.pixels), batch.token_ids, batch.token_mask
    with torch.no_grad():
        said = model.eval().classify(*inputs, []).argmax(1).tolist()
    assert sum(NAMES[one] == NAMES[row % 3] for row, one in enumerate(said)) >= 5


@torch.no_grad()
@both
@pytest.mark.parametrize("trimmers", [None, *EXTREMES], ids=["full", "mixed", "everything kept", "nothing but CLS"])
def test_ranking_answers_of_unlike_lengths_costs_what_torchs_flop_counter_counts(
    trimmers: TrimmerConfig | None, name: BackboneName
) -> None:
    answers = RankedAnswers.of((*NAMES, "2 dark red dogs"), TOKENIZER, 7)
    assert sorted({len(tokens) for tokens in answers.tokens}) == [3, 4, 6]
    model, batch = model_with(trimmers, answers=answers, name=name), small_batch(1, 3)
    length, uncounted = int(batch.token_mask.sum()), list[int]()
    inputs = scale(batch.pixels), batch.token_ids[:, :length], batch.token_mask[:, :length]

    def note(module: TokenTrimmer, _: object, scores: Tensor) -> None:
        uncounted.append(scores.numel() * module.inner)  # this product is no matrix product to the counter

    for module in model.modules():
        if isinstance(module, TokenTrimmer):
            module.register_forward_hook(note)
    trimming, counter = model.trimming(*inputs[1:]), FlopCounterMode(display=False)
    with counter:
        model.classify(*inputs, [] if trimming is None else [trimming])
    macs = model.macs({} if trimming is None else trimming.decisions, units_of(model.backbone, batch.token_mask))
    assert counter.get_total_flops() + 2 * sum(uncounted) == pytest.approx(2 * int(macs), rel=1e-12)


@torch.no_grad()
def test_words_are_scored_where_they_are_to_be_told_and_nowhere_else() -> None:
    model, batch = model_with(MIXED), asked(6)
    task = AnsweringTask(model, TOKENIZER, scale, 1.3, SmartTrimConfig(), units_of(model.backbone, batch.token_mask))
    taught, rows = task.taught(batch), list[int]()
    assert not taught.mask_AL.all(), "answers are of unlike lengths"
    model.backbone.text_decoder.cls.predictions.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    inputs = scale(batch.pixels), batch.token_ids, batch.token_mask
    for trimming in (model.trimming(*inputs[1:], threshold), model.trimming(*inputs[1:])):
        assert trimming is not None
        model.backbone.answer(
            taught.ids_AL, taught.mask_AL, model.ask(*inputs, [trimming]), taught.rows_A, [trimming]
        )  # fmt: skip
    assert rows == [len(taught.words[0])] * 2


@torch.no_grad()
@both
def test_answers_are_ranked_as_if_each_was_scored_alone(name: BackboneName) -> None:
    answers = replace(ANSWERS, candidates=len(NAMES))
    model, batch = model_with(None, answers=answers, name=name), small_batch(3)
    ids_AL, mask_AL = answers.padded
    inputs = scale(batch.pixels), batch.token_ids, batch.token_mask
    scores_BA, question = model.classify(*inputs, []), model.ask(*inputs, [])
    first_BV = model.backbone.first_words(question, TOKENIZER.cls_id).log_softmax(-1)
    for row in range(3):
        for one in range(len(NAMES)):
            length, own = int(mask_AL[one].sum()), torch.tensor([row])
            given = ids_AL[one : one + 1, :length], mask_AL[one : one + 1, :length]
            alone = -answer_losses(model.backbone, *given, question, own)[0]
            if name == "albef":  # whose ranking adds the first word's chance to that of all words
                alone = alone + first_BV[row, ids_AL[one, 1]]
            torch.testing.assert_close(alone, scores_BA[row, one])


def test_albefs_decoder_begins_as_its_fusion_layers_and_learns_unsmoothed() -> None:
    albef = small_model("albef")
    assert isinstance(albef, Albef)
    model = AnsweringModel(albef, None, SMARTTRIM, ANSWERS)
    assert model.backbone.text_encoder.bert is albef.text_encoder.bert  # type: ignore[union-attr]
    decoder, encoder = model.backbone.text_decoder, albef.text_encoder
    fusion = encoder.bert.encoder.layer[albef.config.text.text_layers :]
    for own, given in zip(decoder.bert.encoder.layer, fusion, strict=True):
        same = [torch.equal(a, b) for a, b in zip(own.state_dict().values(), given.state_dict().values(), strict=True)]
        assert all(same), "question and picture are as wide"
    assert torch.equal(decoder.cls.predictions.transform.dense.weight, encoder.cls.predictions.transform.dense.weight)
    assert decoder.bert.embeddings.word_embeddings.weight is not encoder.bert.embeddings.word_embeddings.weight
    assert model.classes.smoothing == 0 and model_with(None).classes.smoothing == 0.1


def test_a_question_that_nobody_answered_cannot_be_learned() -> None:
    model, batch = model_with(None), replace(small_batch(2), told=[{}, {}])
    task = AnsweringTask(model, TOKENIZER, scale, 1.0, SmartTrimConfig(), units_of(model.backbone, batch.token_mask))
    with pytest.raises(UserError, match="has no `answers` of annotators"):
        task.taught(batch)


def test_answers_keep_the_marks_that_tell_them_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Texts lose punctuation, answers must not: 3:30 would be 330."""
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "can", "t", *"0123456789:.'", "##0", "##3"]
    (tmp_path / "vocab.txt").write_text("\n".join(known))
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    listed = RankedAnswers.of(("330", "3:30", "3.30", "can't"), tokenizer.as_written(), 2)
    assert len(set(listed.tokens)) == 4 and not caplog.records
    model, batch = model_with(None), replace(small_batch(1), told=[{"answers": ["3:30"] * 7 + ["330"] * 3}])
    units = units_of(model.backbone, batch.token_mask)
    taught = AnsweringTask(model, tokenizer, scale, 1.0, SmartTrimConfig(), units).taught(batch)
    words = [tuple(ids[mask].tolist()) for ids, mask in zip(taught.ids_AL, taught.mask_AL, strict=True)]
    assert words == [listed.tokens[1], listed.tokens[0]] and taught.weights_A.tolist() == pytest.approx([0.7, 0.3])
    RankedAnswers.of(("red", "3%3", "3$3"), tokenizer, 2)
    assert "so that nothing tells them apart: 1, such as '3$3' and '3%3'" in caplog.text
