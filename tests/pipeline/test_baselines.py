"""EViT, ToMe and FLIP beside ELIP: one interface, one forward, one price list."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from data_prep.errors import UserError
from pipeline.data.seeds import uniforms
from pipeline.measure.flops import LayerTokens, patch_macs
from pipeline.measure.survivors import pruned_sights
from pipeline.models.schedule import CLS, InBlock, Step, Streams, TokenStream, execute
from pipeline.models.vision import VisionTower
from pipeline.objectives.config import ObjectiveConfig
from pipeline.objectives.mlm import Vocabulary
from pipeline.pruning.config import PruningConfig
from pipeline.pruning.elip import ElipConfig
from pipeline.pruning.evit import EvitConfig
from pipeline.pruning.flip import FlipConfig, select_random
from pipeline.pruning.intervention import Pruning, ReplayedPruning
from pipeline.pruning.selection import apply_selection, select_attentive
from pipeline.pruning.tome import TomeConfig
from pipeline.tasks.pretraining import Pretraining
from tests.pipeline.small import WORDS, scale, small_albef, small_batch

STAGES: dict[str, Any] = {"depths": (1, 1, 1, 1), "ratios": (0.9, 0.6, 0.3)}
CONFIGS = {
    "query": PruningConfig(elip=ElipConfig(**STAGES)),
    "stage": PruningConfig(elip=ElipConfig(guidance="stage", depths=(1, 3), ratios=(0.5,))),
    "prune": PruningConfig(elip=ElipConfig(merge=False, **STAGES)),
    "evit": PruningConfig(method="evit", evit=EvitConfig(keep=0.7, layers=(1, 3))),
    "drop": PruningConfig(method="evit", evit=EvitConfig(keep=0.5, layers=(0,), fuse=False)),
    "tome": PruningConfig(method="tome", tome=TomeConfig(merged_per_layer=3)),
    "much": PruningConfig(method="tome", tome=TomeConfig(merged_per_layer=8)),
    "flip": PruningConfig(method="flip", flip=FlipConfig(drop=0.5)),
    "none": PruningConfig(method="none"),
}
every = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
pruning_ones = pytest.mark.parametrize(
    "config", [config for name, config in CONFIGS.items() if name != "none"], ids=[n for n in CONFIGS if n != "none"]
)


class Count:
    """Notes how many tokens a layer's attention and MLP get."""

    def __init__(self, tower: VisionTower) -> None:
        self.seen: list[list[int]] = []
        for block in tower.blocks:
            block.norm1.register_forward_hook(lambda *call: self.seen.append([call[-1].shape[1]]))
            block.norm2.register_forward_hook(lambda *call: self.seen[-1].append(call[-1].shape[1]))


def see(tower: VisionTower, config: PruningConfig, size: int = 3, seed: int = 0) -> tuple[TokenStream, Pruning | None]:
    """Random pictures through the pruned tower."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(size, 3, 32, 32, generator=generator, dtype=tower.pos_embed.dtype)
    sentence = torch.randn(size, 32, generator=generator, dtype=tower.pos_embed.dtype)
    pruning = config.begin(tower, sentence, torch.arange(size))
    steps = [] if pruning is None else [pruning]
    return execute(tower.steps, {"image": tower.embed(pixels)}, steps)["image"], pruning


@every
def test_layers_get_as_many_tokens_as_was_said(config: PruningConfig) -> None:
    tower = small_albef().visual_encoder
    config.check(4, 16)
    said = config.tokens_by_layer(4, 16)
    count = Count(tower)
    image, _ = see(tower, config)
    # Guidance by stage normalises tokens for a look ahead, too.
    real = [tuple(seen) for seen in count.seen if len(seen) == 2] if config.elip.guidance != "stage" else said
    assert real == said
    assert image.x.shape == (3, said[-1].mlp, 32)
    assert image.origin is not None
    assert image.origin.shape == (3, said[-1].mlp)
    assert (image.origin[:, 0] == CLS).all()


def test_token_counts_are_the_papers() -> None:
    evit = EvitConfig().tokens_by_layer(12, 196)
    assert [n.mlp for n in evit] == [197] * 3 + [140] * 3 + [100] * 3 + [72] * 3
    assert evit[3] == LayerTokens(197, 140)
    tome = TomeConfig(merged_per_layer=16).tokens_by_layer(12, 196)
    assert [n.attention for n in tome] == [197 - 16 * layer for layer in range(12)]
    assert tome[-1].mlp == 11  # 21 are left: not 16 but 10 can go
    assert FlipConfig(drop=0.75).tokens_by_layer(2, 196) == [(50, 50), (50, 50)]
    assert [n.mlp for n in ElipConfig().tokens_by_layer(12, 196)] == [197] * 2 + [178] * 2 + [129] * 6 + [80] * 2


def test_macs_are_counted_before_and_behind_the_place_where_tokens_go() -> None:
    tower = small_albef(depth=2).visual_encoder  # 16 patches of 8 x 8, width 32, MLP 128
    config = PruningConfig(method="evit", evit=EvitConfig(keep=0.5, layers=(1,)))
    full = 4 * 17 * 32**2 + 2 * 17**2 * 32
    mlp = 2 * 32 * 128
    row_and_sum = 17 * 32 + 16 * 32  # the row has a score for CLS, the sum leaves it out
    assert config.macs(tower) == patch_macs(tower.config) + 2 * full + 17 * mlp + 10 * mlp + row_and_sum
    assert PruningConfig(method="none").macs(tower) == patch_macs(tower.config) + 2 * full + 2 * 17 * mlp


def test_guidance_by_stage_costs_the_layers_it_looks_ahead() -> None:
    tower = small_albef().visual_encoder
    by = {g: PruningConfig(elip=ElipConfig(guidance=g, depths=(1, 3), ratios=(0.5,))) for g in ("query", "stage")}  # type: ignore[arg-type]
    layer = 4 * 17 * 32**2 + 2 * 17**2 * 32 + 17 * 2 * 32 * 128
    assert by["stage"].macs(tower) - by["query"].macs(tower) == 2 * layer
    assert by["query"].macs(tower) < PruningConfig(method="none").macs(tower)


@given(st.integers(2, 12), st.data())
def test_attentive_selection_is_the_definition(tokens: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, tokens - 1))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    x = torch.randn(2, 1 + tokens, 3, dtype=torch.float64, generator=generator)
    score = torch.rand(2, tokens, dtype=torch.float64, generator=generator).round(decimals=1)  # with ties
    rows = []
    for row, weights in zip(x, score, strict=True):
        order = sorted(range(tokens), key=lambda j: (-float(weights[j]), j))
        fused = sum(float(weights[j]) * row[1 + j] for j in order[keep:])
        rows.append(torch.stack([row[0], *[row[1 + j] for j in sorted(order[:keep])], torch.as_tensor(fused)]))
    torch.testing.assert_close(apply_selection(x, select_attentive(score, keep)), torch.stack(rows))
    assert apply_selection(x, select_attentive(score, keep, fuse=False)).shape == (2, 1 + keep, 3)


def test_evits_fused_token_carries_a_gradient_to_its_weights_and_tokens() -> None:
    x, score = torch.randn(1, 5, 3, requires_grad=True), torch.rand(1, 4, requires_grad=True)
    selection = select_attentive(score, 2)
    apply_selection(x, selection)[:, -1].sum().backward()
    assert x.grad is not None and score.grad is not None
    gone = torch.ones(4).index_fill(0, selection.kept_BK[0], 0).bool()
    assert ((score.grad[0] != 0) == gone).all()
    assert ((x.grad[0, 1:].abs().sum(-1) > 0) == gone).all()


def test_evit_keeps_what_cls_attends_to_and_only_behind_the_attention() -> None:
    tower = small_albef(depth=1).visual_encoder.double()
    block = tower.blocks[0]
    pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    config = EvitConfig(keep=0.5, layers=(0,))
    pruning = config.begin(tower, torch.zeros(2, 32), torch.zeros(2))
    out = execute(tower.steps, {"image": tower.embed(pixels)}, [pruning])["image"].x
    x = tower.embed(pixels).x
    q, k, v = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
    probabilities = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
    x = x + block.attn.proj((probabilities @ v).transpose(1, 2).flatten(2))
    for row in range(2):
        score = probabilities[row, :, 0, 1:].mean(0)
        kept = sorted(score.argsort(descending=True)[:8].tolist())
        left = [j for j in range(16) if j not in kept]
        fused = (score[left, None] * x[row, 1:][left]).sum(0)
        tokens = torch.cat([x[row, :1], x[row, 1:][kept], fused[None]])
        torch.testing.assert_close(out[row], tokens + block.mlp(block.norm2(tokens)))


def test_flips_patches_belong_to_the_sample_and_not_to_its_place() -> None:
    seeds = torch.tensor([5, -(2**62), 77, 5])
    kept = select_random(seeds, 16, 6).kept_BK
    assert kept.shape == (4, 6)
    assert ((kept[:, 1:] - kept[:, :-1]) > 0).all() and kept.min() >= 0 and kept.max() < 16
    assert torch.equal(kept[0], kept[3])
    assert not torch.equal(kept[0], kept[1]) and not torch.equal(kept[1], kept[2])
    shuffled = torch.cat([select_random(part, 16, 6).kept_BK for part in seeds[[2, 1, 0]].split([1, 2])])
    assert torch.equal(shuffled, kept[[2, 1, 0]])


def test_flip_drops_every_patch_equally_often() -> None:
    kept = select_random(torch.arange(2000), 16, 8).kept_BK
    share = torch.bincount(kept.flatten(), minlength=16) / 2000
    assert (share - 0.5).abs().max() < 0.05  # 4.5 deviations of 0.011


def test_dropped_patches_have_nothing_to_do_with_masked_words() -> None:
    """Both are drawn from a sample's one seed: word l must not be masked whenever patch 3 l is dropped."""
    seeds = torch.arange(500)
    dropped = torch.ones(500, 16).scatter(1, select_random(seeds, 16, 8).kept_BK, 0.0)
    together = torch.corrcoef(torch.cat([dropped, uniforms(seeds, 48)], 1).T)[:16, 16:]
    assert together.abs().max() < 0.25  # 5.5 deviations of 500 samples


def test_flips_tokens_are_the_patches_themselves() -> None:
    tower, config = small_albef(depth=1).visual_encoder, FlipConfig(drop=0.5)
    pixels = torch.randn(2, 3, 32, 32)
    seen: list[TokenStream] = []

    class Look:
        def before(self, step: Step, streams: Streams) -> tuple[Streams, dict[str, InBlock]]:
            seen.append(streams["image"])
            return streams, {}

    dropping = config.begin(tower, torch.zeros(2, 32), torch.arange(2))
    execute(tower.steps, {"image": tower.embed(pixels)}, [dropping, Look()])
    whole, (image,) = tower.embed(pixels).x, seen
    assert image.origin is not None
    for row in range(2):
        assert torch.equal(image.x[row], whole[row, 1 + image.origin[row]])


@pruning_ones
def test_a_replay_repeats_the_method_in_the_same_tower_and_follows_it_in_another(config: PruningConfig) -> None:
    tower, other = small_albef().visual_encoder, small_albef(seed=1).visual_encoder
    first, pruning = see(tower, config)
    assert pruning is not None
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    again = execute(tower.steps, {"image": tower.embed(pixels)}, [ReplayedPruning(pruning)])["image"]
    there = execute(other.steps, {"image": other.embed(pixels)}, [ReplayedPruning(pruning)])["image"]
    torch.testing.assert_close(again.x, first.x)
    for image in (again, there):
        assert image.origin is not None and first.origin is not None
        assert torch.equal(image.origin, first.origin)
    assert (again.size is None) == (config.method != "tome")


@every
def test_every_weight_of_the_tower_learns(config: PruningConfig) -> None:
    tower = small_albef().visual_encoder
    see(tower, config)[0].x.square().sum().backward()
    idle = [name for name, p in tower.named_parameters() if not name.startswith("norm.") and p.grad is None]
    assert not idle


@every
@pytest.mark.parametrize("momentum", [False, True])
def test_a_pretraining_step_has_finite_losses(config: PruningConfig, momentum: bool) -> None:
    pruning = PruningConfig(**{**vars(config), "prune_momentum": momentum})
    task = Pretraining(
        small_albef(), ObjectiveConfig(queue=8), pruning, Vocabulary(mask=4, size=WORDS), scale, torch.Generator()
    )
    assert task.memory is not None
    counts = Count(task.memory.teacher.model.visual_encoder)
    losses = task.losses(task.module, small_batch(), 0.5)
    losses.total.backward()
    assert {name: (t.shape, bool(t.isfinite())) for name, t in losses.named.items()} == {
        name: (torch.Size([]), True) for name in ("itc", "itm", "mlm")
    }
    grad = task.model.visual_encoder.patch_embed.proj.weight.grad
    assert grad is not None and grad.isfinite().all() and grad.any()
    taught = pruning.tokens_by_layer(4, 16) if momentum else [(17, 17)] * 4
    assert [tuple(seen) for seen in counts.seen] == taught


@pytest.mark.parametrize(
    "config",
    [
        PruningConfig(elip=ElipConfig(depths=(1, 1), ratios=(0.5,))),
        PruningConfig(method="evit", evit=EvitConfig(layers=(0,))),
        CONFIGS["tome"],
        CONFIGS["flip"],
    ],
    ids=lambda config: config.method,
)
def test_the_pruned_tower_is_one_graph(config: PruningConfig) -> None:
    tower = small_albef(depth=2).visual_encoder

    def forward(pixels: Tensor, sentence: Tensor, seeds: Tensor) -> Tensor:
        pruning = config.begin(tower, sentence, seeds)
        return execute(tower.steps, {"image": tower.embed(pixels)}, [] if pruning is None else [pruning])["image"].x

    torch._dynamo.reset()  # one method's compiled code is not another's
    given = torch.randn(2, 3, 32, 32), torch.randn(2, 32), torch.arange(2)
    compiled = torch.compile(forward, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given), forward(*given))


@pytest.mark.parametrize("method", ["elip", "evit", "tome"])
def test_survivors_are_drawn_for_every_method_that_looks(method: str) -> None:
    name = {"elip": "query"}.get(method, method)
    assert CONFIGS[name].looks and not CONFIGS["flip"].looks and not CONFIGS["none"].looks
    batch = small_batch()
    sights = pruned_sights(small_albef(), CONFIGS[name], scale(batch.pixels), batch)
    counts = dict.fromkeys(n.attention for n in CONFIGS[name].tokens_by_layer(4, 16))
    assert [sight.origin_BN.shape[1] for sight in sights] == list(counts)


@pytest.mark.parametrize(
    ("kind", "values", "names"),
    [
        (EvitConfig, {"keep": 1.0}, r"evit.keep=1.0 .* set pruning.method to none"),
        (EvitConfig, {"keep": float("nan")}, "evit.keep=nan"),
        (EvitConfig, {"layers": ()}, r"evit.layers=\[\]"),
        (EvitConfig, {"layers": (6, 3)}, r"evit.layers=\[6, 3\] must name layers .* rising"),
        (EvitConfig, {"layers": (-1, 3)}, r"evit.layers=\[-1, 3\]"),
        (TomeConfig, {"merged_per_layer": 0}, "tome.merged_per_layer=0 must be at least 1"),
        (FlipConfig, {"drop": 0.0}, "flip.drop=0.0 .* set pruning.method to none"),
        (FlipConfig, {"drop": 1.0}, "flip.drop=1.0"),
    ],
)
def test_impossible_settings_are_refused_by_name(kind: Any, values: dict[str, Any], names: str) -> None:
    with pytest.raises(UserError, match=names):
        kind(**values)


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (
            PruningConfig(method="evit"),
            r"evit.layers=.* names layer 9, the vision tower's 4 layers are 0 to 3",
        ),
        (PruningConfig(method="evit", evit=EvitConfig(keep=0.99, layers=(1,))), "evit.keep=0.99 keeps all 16 tokens"),
        (PruningConfig(method="tome", tome=TomeConfig(merged_per_layer=9)), "merged_per_layer=9 .* must be at most 8"),
        (PruningConfig(method="flip", flip=FlipConfig(drop=0.99)), "flip.drop=0.99 keeps 0 of 16 patches"),
        (PruningConfig(method="flip", flip=FlipConfig(drop=0.01)), "flip.drop=0.01 keeps 16 of 16 patches"),
        (PruningConfig(), "elip.depths"),
    ],
)
def test_settings_must_fit_the_tower(config: PruningConfig, names: str) -> None:
    with pytest.raises(UserError, match=names):
        config.check(4, 16)


def test_only_the_chosen_methods_settings_count() -> None:
    """A recipe for a small tower need not mend the settings of methods that it does not use."""
    PruningConfig(method="tome").check(4, 16)
    PruningConfig(method="none").check(4, 16)
    PruningConfig(elip=ElipConfig(guidance="none")).check(4, 16)
