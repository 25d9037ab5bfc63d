"""SmartTrim: masked and packed execution agree; the start, the gradient, the cost and the curriculum."""

import math

import pytest
import torch

from data_prep.errors import UserError
from pipeline.measure.flops import linear_macs
from pipeline.models.config import BackboneName
from pipeline.models.packing import keep_packed, pack
from pipeline.models.schedule import TokenStream
from pipeline.process import Process
from pipeline.tasks.classification import Answers, ClassificationModel, ClassificationTask, SmartTrimConfig
from pipeline.trimming.calibrate import calibrate
from pipeline.trimming.cost import GROUPS, cost_loss, solve_share, units_of
from pipeline.trimming.curriculum import Curriculum, CurriculumConfig
from pipeline.trimming.distillation import class_divergence
from pipeline.trimming.smarttrim import GumbelGate, MaskedTrimming, PackedTrimming, threshold
from pipeline.trimming.trimmers import SMARTTRIM, Group, Policy, TrimmerConfig, Trimmers
from tests.pipeline.distributed import run_ranks
from tests.pipeline.small import scale, small_batch, small_model

MIXED = TrimmerConfig(keep_bias=0.1, last_std=0.5)  # about half of everything goes


@pytest.fixture(autouse=True)
def doubles() -> object:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def model_with(
    trimmers: TrimmerConfig | None, seed: int = 0, backbone: BackboneName = "albef", policy: Policy = SMARTTRIM
) -> ClassificationModel:
    return ClassificationModel(small_model(backbone, seed), trimmers, policy).eval()


@pytest.mark.parametrize("trimmers", [MIXED, TrimmerConfig(keep_bias=-9.0), TrimmerConfig(keep_bias=9.0)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_masked_and_packed_execution_agree(trimmers: TrimmerConfig, seed: int) -> None:
    model, batch = model_with(trimmers, seed), small_batch(5, seed)
    masked, packed = MaskedTrimming(model.trimmers), PackedTrimming(model.trimmers)  # type: ignore[arg-type]
    inputs = scale(batch.pixels), batch.token_ids, batch.token_mask
    torch.testing.assert_close(model.classify(*inputs, [masked]), model.classify(*inputs, [packed]))
    for name, decision in masked.decisions.items():
        other = packed.decisions[name]
        assert torch.equal(decision.tokens_B, other.tokens_B.to(decision.tokens_B.dtype))
        assert decision.self_BH is not None and other.self_BH is not None
        assert torch.equal(decision.self_BH, other.self_BH)
    cost = model.cost_model()
    units = units_of(model.backbone, batch.token_mask)
    torch.testing.assert_close(cost.of(masked.decisions, units), cost.of(packed.decisions, units))


@pytest.mark.parametrize("groups", [("vision",), ("text",), ("vision", "text"), ("msa",), ("mca", "text")])
@pytest.mark.parametrize("backbone", ["albef", "blip", "meter"])
def test_groups_that_are_left_alone_keep_all_and_the_others_learn(
    groups: tuple[Group, ...], backbone: BackboneName
) -> None:
    policy = Policy(groups=groups)
    model, batch = model_with(MIXED, 0, backbone, policy), small_batch(5)
    assert isinstance(model.trimmers, Trimmers) and model.trimmers.learned == set(groups)
    inputs, units = (
        (scale(batch.pixels), batch.token_ids, batch.token_mask),
        units_of(model.backbone, batch.token_mask),
    )
    masked, packed = MaskedTrimming(model.trimmers), PackedTrimming(model.trimmers)
    torch.testing.assert_close(model.classify(*inputs, [masked]), model.classify(*inputs, [packed]))
    cost = model.cost_model()
    torch.testing.assert_close(cost.of(masked.decisions, units), cost.of(packed.decisions, units))
    shares = cost.kept_shares(masked.decisions, units)
    assert all((float(share) < 1) == (group in groups) for group, share in shares.items()), shares
    assert solve_share(cost, units, 1.05) < 1
    learning = MaskedTrimming(model.trimmers, GumbelGate(0.1, 1.0))
    answers = model.classify(*inputs, [learning])
    kept = {group: share for group, share in cost.kept_shares(learning.decisions, units).items() if group in groups}
    (answers.square().sum() + cost_loss(kept, dict.fromkeys(kept, 0.1))).backward()
    assert all(parameter.grad is not None for parameter in model.trimmers.parameters())


def test_where_nothing_is_trimmed_the_answers_are_the_full_models() -> None:
    model, batch = model_with(TrimmerConfig()), small_batch(5)
    answers: Answers = model(scale(batch.pixels), batch.token_ids, batch.token_mask, GumbelGate(0.0, 1.0), True)
    torch.testing.assert_close(answers.trimmed_BA, answers.full_BA)


def test_a_token_once_trimmed_stays_trimmed_and_padding_never_counts() -> None:
    model, batch = model_with(MIXED), small_batch(6)
    trimming = MaskedTrimming(model.trimmers)  # type: ignore[arg-type]
    model.classify(scale(batch.pixels), batch.token_ids, batch.token_mask, [trimming])
    before: dict[str, torch.Tensor] = {"text": batch.token_mask.double()}
    for decision in trimming.decisions.values():
        assert decision.present_BN is not None
        assert (decision.present_BN[:, 0] == 1).all()
        if decision.group in before:
            assert (decision.present_BN <= before[decision.group]).all()
        before[decision.group] = decision.present_BN


def test_every_trimmer_parameter_has_a_gradient_at_the_first_step() -> None:
    model, batch = model_with(TrimmerConfig()), small_batch(6)
    task = ClassificationTask(model, scale, 1.5, SmartTrimConfig(), units_of(model.backbone, batch.token_mask))
    task.losses(model, batch, 0.3).total.backward()
    assert model.trimmers is not None
    for name, parameter in model.trimmers.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def trimmed_step(process: Process) -> tuple[dict[str, float], dict[str, torch.Tensor], dict[str, float]]:
    """Named losses, gradients and the scores' shifts of this rank's part of a batch of 8."""
    torch.set_default_dtype(torch.float64)
    try:
        model, batch = model_with(MIXED), small_batch(8)
        part = 8 // process.world_size
        mine = batch.part(slice(process.rank * part, (process.rank + 1) * part))
        task = ClassificationTask(
            model, scale, 2.5, SmartTrimConfig(trimmers=MIXED), units_of(model.backbone, batch.token_mask)
        )
        losses = task.losses(model, mine, 0.0)  # without noise: each rank would draw its own
        losses.total.backward()
        task.after_update(0.9)
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return (
            {name: float(value.detach()) for name, value in losses.named.items()},
            gradients,
            {**task.curriculum.shifts, "moved": task.curriculum.moved},
        )
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.timeout(120)
def test_two_processes_trim_as_one_with_the_whole_batch() -> None:
    named, gradients, shift = trimmed_step(Process())
    torch.set_default_dtype(torch.float64)
    parts = run_ranks(trimmed_step, 2)
    assert min(shift.values()) < 0 and shift["moved"] and parts[0][2] == parts[1][2]
    for part in parts:
        assert part[0]["cost"] == pytest.approx(named["cost"])
        assert part[2] == pytest.approx(shift)
    for name, value in named.items():
        assert (parts[0][0][name] + parts[1][0][name]) / 2 == pytest.approx(value)
    averaged = {name: (parts[0][1][name] + parts[1][1][name]) / 2 for name in gradients}
    torch.testing.assert_close(averaged, gradients)


def test_the_gate_is_hard_forward_soft_backward_and_follows_its_probability() -> None:
    scores = torch.full((20000,), 0.4, requires_grad=True)
    torch.manual_seed(0)
    mask = GumbelGate(1.0, 1.0)(scores)
    assert set(mask.detach().unique().tolist()) == {0.0, 1.0}
    assert abs(float(mask.detach().mean()) - float(torch.sigmoid(torch.tensor(0.4)))) < 0.01
    mask.sum().backward()
    assert scores.grad is not None and (scores.grad > 0).all()
    assert torch.equal(GumbelGate(0.0, 1.0)(scores).detach(), threshold(scores))


def test_noise_rises_stays_and_fades_before_training_ends() -> None:
    fading = TrimmerConfig(noise=0.4, noise_ramp=0.2, noise_fade=0.5)
    found = [fading.noise_at(progress) for progress in (0.0, 0.1, 0.2, 0.5, 0.75, 1.0)]
    assert found == pytest.approx([0.0, 0.2, 0.4, 0.4, 0.2, 0.0])
    assert TrimmerConfig(noise=0.4, noise_ramp=0.0).noise_at(0.0) == TrimmerConfig(noise=0.4).noise_at(1.0) == 0.4


def test_masks_and_scores_stay_exact_under_autocast() -> None:
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    gone = 1 - GumbelGate(1.0, 1.0)(torch.full((200000,), 8.0, dtype=torch.bfloat16))
    assert abs(float(gone.mean()) - float(torch.sigmoid(torch.tensor(-8.0)))) < 2e-4
    model, batch = model_with(MIXED), small_batch(4)
    task = ClassificationTask(model, scale, 1.5, SmartTrimConfig(), units_of(model.backbone, batch.token_mask))
    with torch.autocast("cpu", torch.bfloat16):
        answers: Answers = model(scale(batch.pixels), batch.token_ids, batch.token_mask, GumbelGate(1.0, 1.0), True)
    assert answers.trimmed_BA is not None and answers.full_BA is not None
    assert answers.trimmed_BA.dtype == answers.full_BA.dtype == torch.float32
    for decision in answers.decisions.values():
        assert decision.tokens_B.dtype == torch.float32
        assert decision.self_BH is not None and decision.self_BH.dtype == torch.float32
    assert task.cost.of(answers.decisions, units_of(model.backbone, batch.token_mask)).dtype == torch.float32


def test_packing_keeps_order_and_the_class_token() -> None:
    x = torch.arange(8.0).view(2, 4, 1)
    present = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    packed = pack(TokenStream(x, present))
    assert packed.x.flatten().tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert packed.offsets == (0, 3, 7)
    kept = keep_packed(packed, torch.tensor([0, 0, 1, 0, 0, 0, 0]).bool())
    assert kept.x.flatten().tolist() == [0, 2, 4]
    assert kept.offsets == (0, 2, 3)
    assert kept.cls.flatten().tolist() == [0, 4]


def test_shares_and_cost_loss_by_hand() -> None:
    model, batch = model_with(TrimmerConfig(keep_bias=9.0)), small_batch(3)
    trimming = MaskedTrimming(model.trimmers)  # type: ignore[arg-type]
    model.classify(scale(batch.pixels), batch.token_ids, batch.token_mask, [trimming])
    shares = model.cost_model().kept_shares(trimming.decisions, units_of(model.backbone, batch.token_mask))
    assert set(shares) == set(GROUPS)
    assert {float(share) for share in shares.values()} == {1.0}
    assert float(cost_loss(shares, dict.fromkeys(shares, 0.5))) == pytest.approx(0.25)


def test_the_cost_loss_reaches_its_target_while_layers_differ() -> None:
    """γ binds each group over all its layers, not each layer: on few instances, without the shift of all scores."""
    config = SmartTrimConfig(
        trimmers=TrimmerConfig(noise=0.0, keep_bias=2.0, last_std=0.1),
        curriculum=CurriculumConfig(share=0.0, gain=0.0),
        distill_weight=0.0,
    )
    model, batch = model_with(config.trimmers), small_batch(8)
    units = units_of(model.backbone, batch.token_mask)
    task = ClassificationTask(model, scale, 1.5, config, units)
    optimizer, costs = torch.optim.Adam(model.parameters(), 0.005), []
    for _ in range(45):
        losses = task.losses(model, batch, 1.0)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        costs.append(float(losses.named["cost"].detach()))
    trimming = MaskedTrimming(model.trimmers)  # type: ignore[arg-type]
    with torch.no_grad():
        model.classify(scale(batch.pixels), batch.token_ids, batch.token_mask, [trimming])
    cost, wanted = model.cost_model(), task.curriculum.wanted(1.0)
    shares = {group: float(share) for group, share in cost.kept_shares(trimming.decisions, units).items()}
    assert wanted < 0.9 and costs[0] > 20 * costs[-1]
    assert shares == pytest.approx(dict.fromkeys(shares, wanted), abs=0.06)
    layers = {place: float(share_B.mean()) for place, share_B in cost.kept_by_place(trimming.decisions, units).items()}
    for group in ("vision", "msa"):
        own = [share for place, share in layers.items() if place.group == group]
        assert max(own) - min(own) > 0.15, (group, own)


def test_the_full_cost_is_what_torchs_flop_counter_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, batch = model_with(None), small_batch(1, seed=3)
    length = int(batch.token_mask.sum())
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.classify(scale(batch.pixels), batch.token_ids[:, :length], batch.token_mask[:, :length], [])
    units = units_of(model.backbone, batch.token_mask)
    assert counter.get_total_flops() == 2 * int(model.cost_model().full(units))


def test_the_trimmers_own_cost_is_counted() -> None:
    model, batch = model_with(TrimmerConfig(keep_bias=9.0)), small_batch(2)
    units = units_of(model.backbone, batch.token_mask)
    cost = model.cost_model()
    assert model.trimmers is not None
    own = cost.at_share(units, 1.0) - cost.full(units)
    heads = [part.self_heads for part in model.trimmers.values()]  # type: ignore[union-attr]
    assert (own > sum(linear_macs(head) for head in heads)).all()  # type: ignore[arg-type]


def test_the_solved_share_reaches_the_wanted_cost_or_says_what_can_be_reached() -> None:
    model, batch = model_with(TrimmerConfig(width_share=0.05)), small_batch(6)
    cost, units = model.cost_model(), units_of(model.backbone, batch.token_mask)
    share = solve_share(cost, units, 1.5)
    assert float(cost.full(units).mean() / cost.at_share(units, share).mean()) == pytest.approx(1.5, rel=1e-6)
    with pytest.raises(UserError, match=r"highest target is \d"):
        solve_share(cost, units, 1000.0)


def curriculum(share: float) -> Curriculum:
    """Of two groups, for 0.4 of the cost."""
    return Curriculum(CurriculumConfig(share=share, gain=0.1), 0.6, ("vision", "text"), 0.4)


def test_the_curriculum_falls_linearly_and_who_keeps_more_than_asked_pays_for_itself() -> None:
    """Not only when it has fallen: what was behind by then came as one large shift, which threw a training."""
    falling = curriculum(0.5)
    assert [round(falling.wanted(p), 6) for p in (0, 0.25, 0.5, 1)] == [1.0, 0.8, 0.6, 0.6]
    falling.observe(0.25, {"vision": 0.9, "text": 0.8, "msa": 0.1}, 0.9)
    assert falling.shifts == pytest.approx({"vision": -0.01, "text": 0.0})
    falling.observe(0.25, {"vision": 0.85, "text": 0.5}, 0.9)  # who keeps less than asked is not paid for it
    assert falling.shifts == pytest.approx({"vision": -0.015, "text": 0.0}) and falling.moved == 0
    falling.observe(0.5, {"vision": 0.6, "text": 0.6}, 0.5)  # all do as asked, and it costs too much
    assert falling.shifts["text"] == 0 and falling.moved == pytest.approx(-0.002)
    assert falling.asked(0.5) == pytest.approx(0.598) and falling.wanted(0.5) == pytest.approx(0.6)
    at_once = curriculum(0.0)
    at_once.observe(0.0, {"vision": 1.0, "text": 0.6}, 0.4)
    assert at_once.shifts == pytest.approx({"vision": -0.04, "text": 0.0}) and at_once.moved == 0


def test_the_curriculum_goes_on_from_its_state_to_the_bit() -> None:
    first, second = curriculum(0.1), curriculum(0.1)
    first.observe(0.5, {"vision": 0.9, "text": 0.71}, 0.77)
    second.load(first.tensors())
    for each in (first, second):
        each.observe(0.6, {"vision": 0.83, "text": 0.7}, 0.66)
    assert first.shifts == second.shifts and min(first.shifts.values()) < 0
    assert first.moved == second.moved < 0 and first.asked(0.6) == second.asked(0.6)


@pytest.mark.parametrize("stubborn", [0.0, 2.0])
def test_shifts_bring_every_group_to_one_share_and_that_to_the_wanted_cost(stubborn: float) -> None:
    """Scores that lie 0.15 apart, of which one group's are high by themselves; keeping 0.6 would cost 0.45, not 0.4."""
    learning, scores = curriculum(0.4), {"vision": 0.15 + stubborn, "text": 0.15}
    kept, cost = dict.fromkeys(scores, 1.0), 1.0
    for update in range(1500):
        for group, score in scores.items():
            kept[group] = 1 / (1 + math.exp(-(score + learning.shifts[group]) / 0.15))
        cost = 0.75 * sum(kept.values()) / 2
        learning.observe(update / 1500, kept, cost)
    assert cost == pytest.approx(0.4, abs=0.01)
    assert kept["vision"] == pytest.approx(kept["text"], abs=0.01) == pytest.approx(learning.asked(1.0), abs=0.01)


@pytest.mark.parametrize("speed_up", [1.3, 2.0])
@pytest.mark.parametrize("bias", [-2.0, 0.1, 2.0])
def test_calibration_reaches_the_wanted_cost_from_both_sides(speed_up: float, bias: float) -> None:
    torch.manual_seed(0)
    model, batch = model_with(TrimmerConfig(width_share=0.2, last_std=0.5, keep_bias=bias)).eval(), small_batch(64)
    assert model.trimmers is not None
    words = {name: value.clone() for name, value in model.trimmers.state_dict().items()}

    def measure() -> float:
        return float(model.cost_shares(scale(batch.pixels), batch.token_ids, batch.token_mask).mean())

    done = calibrate(model.trimmers, measure, 1 / speed_up)
    assert done.after == measure() == pytest.approx(1 / speed_up, rel=0.01)
    assert done.before is not None and (done.shift < 0) == (done.before > 1 / speed_up)
    for name, value in model.trimmers.state_dict().items():
        is_last = name.endswith(("local.2.bias", "score.2.bias"))
        torch.testing.assert_close(value, words[name] + (done.shift if is_last else 0.0))


def test_calibration_takes_what_comes_nearest_where_the_wanted_cost_is_out_of_reach() -> None:
    model, batch = model_with(TrimmerConfig(width_share=0.2)).eval(), small_batch(4)
    assert model.trimmers is not None

    def measure() -> float:
        return float(model.cost_shares(scale(batch.pixels), batch.token_ids, batch.token_mask).mean())

    done = calibrate(model.trimmers, measure, 0.01)
    model.trimmers.shift(-100.0)
    assert done.after == measure() > 0.01


def test_divergence_teaches_the_trimmed_side_only() -> None:
    trimmed, full = torch.randn(4, 2, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    divergence = class_divergence(trimmed, full)
    p, q = trimmed.detach().softmax(-1), full.detach().softmax(-1)
    torch.testing.assert_close(divergence.detach(), (p * (p / q).log()).sum(-1).mean())
    divergence.backward()
    assert full.grad is None and trimmed.grad is not None
    assert float(class_divergence(full, full).detach()) == pytest.approx(0, abs=1e-12)
