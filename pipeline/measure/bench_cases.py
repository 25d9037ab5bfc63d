"""What `trimline bench vision` and `trimline bench step` compare: the real towers and the real task, pruned or not.

All variants of a bench run the same weights on the same input; they differ in the pruning alone.

B batch, N tokens, L text tokens, D width.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline.data.batch import ImageTextBatch
from pipeline.data.pixels import CLIP_MEAN, CLIP_STD, normalise
from pipeline.limits import at_least
from pipeline.measure.step_macs import pretraining_macs
from pipeline.measure.training_macs import Macs, StepSizes, tower_macs
from pipeline.models.backbone import Backbone
from pipeline.models.build import build_model
from pipeline.models.compiling import compile_blocks
from pipeline.models.config import ModelConfig
from pipeline.models.schedule import TokenStream
from pipeline.models.text import TextConfig
from pipeline.models.vision import VisionConfig, VisionTower
from pipeline.objectives.config import ObjectiveConfig
from pipeline.objectives.mlm import Vocabulary, mask_words
from pipeline.pruning.config import PruningConfig
from pipeline.pruning.elip import ElipConfig
from pipeline.pruning.tome import TomeConfig
from pipeline.tasks.online import STEPS
from pipeline.tasks.pretraining import Pretraining

REFERENCE = "unpruned"
WIDTHS = {"base": (768, 12), "small": (384, 6), "tiny": (192, 3)}
"""Width and heads of DeiT's three sizes; all have 12 layers."""

_UNPRUNED = PruningConfig(method="none")
_GUIDANCES: Mapping[str, PruningConfig] = {
    REFERENCE: _UNPRUNED,
    "query": PruningConfig(elip=ElipConfig(guidance="query")),
    "stage": PruningConfig(elip=ElipConfig(guidance="stage")),
}
STEP_VARIANTS: Mapping[str, PruningConfig] = {
    **_GUIDANCES,
    "query_momentum": PruningConfig(prune_momentum=True, elip=ElipConfig(guidance="query")),
    "stage_momentum": PruningConfig(prune_momentum=True, elip=ElipConfig(guidance="stage")),
}
_WORDS = Vocabulary(mask=103, size=30522)
_CLIP_WORDS = 49408
_CLIP_TEXT = {
    "base": {"width": 512, "heads": 8, "text_layers": 12},
    "small": {"width": 384, "heads": 6, "text_layers": 12},
    "tiny": {"width": 192, "heads": 3, "text_layers": 6},
}
"""CLIP's text towers, as in configs/models."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What is measured, and how.

    Attributes:
        what: ``vision``, the vision tower alone; ``step``, a pre-training step.
        backbone: Whose step.
        model: Width of all towers, see `WIDTHS`.
        variants: Which are compared with the unpruned one; none given stands for all.
        image_size: Height and width in pixels.
        patch: Side of a patch in pixels.
        text_length: L; all texts are that long (``step``).
        batch: B.
        dtype: ``bfloat16`` runs forwards under autocast, as training does.
        device: Where it runs.
        threads: Of torch on the CPU.
        compile: Whether torch.compile makes the blocks, as `engine.compile` does in training.
        rounds: Rounds that count; each runs every variant once, and the unpruned one before and after each.
        warmup: Rounds before them.
        seed: Of weights, inputs and the order in a round.
    """

    what: Literal["vision", "step"]
    backbone: Literal["albef", "clip"] = "albef"
    model: str = "base"
    variants: tuple[str, ...] = ()
    image_size: int = 224
    patch: int = 16
    text_length: int = 25
    batch: int = 8
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1
    compile: bool = False
    rounds: int = 10
    warmup: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, "bench", 1, "image_size", "patch", "batch", "threads", "rounds", "warmup")
        if self.what == "step":
            # Matching needs a wrong image and a wrong text for each pair; the class token is never masked.
            at_least(self, "bench", 2, "batch", "text_length")
            if self.text_length > (longest := self.whole.text.longest):
                raise UserError(f"bench.text_length={self.text_length} must be at most {longest}")
        if self.image_size % self.patch:
            near = max(1, round(self.image_size / self.patch)) * self.patch
            raise UserError(
                f"bench.image_size={self.image_size} must be a multiple of bench.patch={self.patch}; try {near}"
            )
        known = [name for name in _variants(self) if name != REFERENCE]
        for name in self.variants:
            if name not in known:
                raise UserError(
                    f"bench.variants names {name!r}, which bench {self.what} has not; it has {', '.join(known)}"
                )
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("bench.device=cuda: torch finds no GPU on this machine; give cpu")

    @property
    def vision(self) -> VisionConfig:
        """Sizes of the vision tower."""
        width, heads = WIDTHS[self.model]
        return VisionConfig(
            height=self.image_size, width_px=self.image_size, patch=self.patch, width=width, heads=heads
        )

    @property
    def whole(self) -> ModelConfig:
        """Sizes of the whole model, as in configs/models."""
        if self.backbone == "clip":
            norms: dict[str, Any] = {"eps": 1e-5, "patch_bias": False, "pre_norm": True}
            sizes: dict[str, Any] = {**_CLIP_TEXT[self.model], "max_positions": 77, "type_rows": 0, "eps": 1e-5}
            text = TextConfig(vocab_size=_CLIP_WORDS, fusion_layers=0, dropout=0.0, **sizes)
            embed = 512 if self.model == "base" else 256
            return ModelConfig(backbone="clip", vision=replace(self.vision, **norms), text=text, embed=embed)
        width, heads = WIDTHS[self.model]
        return ModelConfig(vision=self.vision, text=TextConfig(vocab_size=_WORDS.size, width=width, heads=heads))


@dataclass(frozen=True)
class Case:
    """One variant, ready to run.

    Attributes:
        forward: Computes what the backward starts from.
        gradient: Of that; None for a scalar.
        macs: Of one sample.
    """

    forward: Callable[[], Tensor]
    gradient: Tensor | None
    macs: Macs


@dataclass(frozen=True)
class Bench:
    """The variants of one bench.

    Attributes:
        cases: By name, the reference among them.
        module: Whose gradients they leave.
        standing: Gives the tensors that are there in any case: weights, momentum tower, queue.
        after: To be called after each run, untimed.
        includes: What a run is, in words.
    """

    cases: Mapping[str, Case]
    module: nn.Module
    standing: Callable[[], Iterator[Tensor]]
    after: Callable[[], None]
    includes: str


def vision_variants(patches: int) -> Mapping[str, PruningConfig]:
    """ELIP's guidances, and the baselines with settings that fit the input."""
    return {
        **_GUIDANCES,
        "evit": PruningConfig(method="evit"),
        "tome": PruningConfig(method="tome", tome=TomeConfig(merged_per_layer=max(1, patches // 24))),
        "flip": PruningConfig(method="flip"),
    }


def variants_of(config: BenchConfig) -> Mapping[str, PruningConfig]:
    """Prunings that a bench compares, by name, the unpruned one first."""
    every = _variants(config)
    return {name: every[name] for name in every if name == REFERENCE or not config.variants or name in config.variants}


def _variants(config: BenchConfig) -> Mapping[str, PruningConfig]:
    return vision_variants(config.vision.patches) if config.what == "vision" else STEP_VARIANTS


def _checked_variants(config: BenchConfig) -> Mapping[str, PruningConfig]:
    variants = variants_of(config)
    for pruning in variants.values():
        pruning.check(config.vision.depth, config.vision.patches)
    return variants


def build_bench(config: BenchConfig) -> Bench:
    """Weights, inputs and variants.

    Raises:
        UserError: Sizes that cannot be pruned so.
    """
    return _vision_bench(config) if config.what == "vision" else _step_bench(config)


def _prepared(config: BenchConfig, forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same function under autocast for 16 bits, as training runs it."""

    def run(*inputs: Any) -> Any:
        with torch.autocast(config.device, torch.bfloat16, enabled=config.dtype == "bfloat16"):
            return forward(*inputs)

    return run


def _vision_bench(config: BenchConfig) -> Bench:
    variants = _checked_variants(config)
    torch.manual_seed(config.seed)
    tower = VisionTower(config.vision).to(config.device)
    if config.compile:
        compile_blocks(tower)
    width, patches = config.vision.width, config.vision.patches
    pixels = torch.randn(config.batch, 3, config.image_size, config.image_size, device=config.device)
    sentence_BD = torch.randn(config.batch, width, device=config.device)
    seeds_B = torch.arange(config.batch, device=config.device)
    cases = {}
    for name, pruning in variants.items():
        tokens = pruning.tokens_by_layer(config.vision.depth, patches)[-1].mlp
        forward = partial(_prepared(config, partial(_tower_forward, tower, pruning)), pixels, sentence_BD, seeds_B)
        # Drawn: ones would vanish in the last norm's backward.
        gradient = torch.randn(config.batch, tokens, width, device=config.device)
        cases[name] = Case(forward, gradient, tower_macs(tower, pruning))
    return Bench(cases, tower, tower.parameters, lambda: None, "vision tower: forward and backward to the weights")


def _tower_forward(
    tower: VisionTower, config: PruningConfig, pixels: Tensor, sentence_BD: Tensor, seeds_B: Tensor
) -> Tensor:
    """(B, N, D) the tower's last tokens."""
    pruning = config.begin(tower, sentence_BD, seeds_B)
    encoded: TokenStream = tower(pixels, [] if pruning is None else [pruning])
    return encoded.x


@dataclass(frozen=True)
class StepParts:
    """One task, and what varies in it.

    Attributes:
        model: The online model.
        task: One for all variants.
        forwards: By variant what the task is to run; under autocast for 16 bits.
        macs: By variant, of one sample in a batch of the configured size.
        includes: What a step is, in words.
    """

    model: Backbone
    task: Pretraining
    forwards: Mapping[str, Callable[..., Any]]
    macs: Mapping[str, Macs]
    includes: str

    def total(self, name: str, batch: ImageTextBatch) -> Tensor:
        """The loss of a variant."""
        return self.task.losses(self.forwards[name], batch, 1.0).total


def step_parts(config: BenchConfig) -> StepParts:
    """Weights and variants of a pre-training step.

    Raises:
        UserError: Sizes that cannot be pruned so.
    """
    variants = _checked_variants(config)
    torch.manual_seed(config.seed)
    model = build_model(config.whole).to(config.device)
    objectives, to_input = ObjectiveConfig(), partial(normalise, mean=CLIP_MEAN, std=CLIP_STD)
    task = Pretraining(model, objectives, _UNPRUNED, _WORDS, to_input, torch.Generator().manual_seed(config.seed))
    if config.compile:
        compile_blocks(task.module)
    sizes = _step_sizes(config, objectives, task)
    step = STEPS[config.backbone]
    return StepParts(
        model,
        task,
        # The task is one for all: what varies is the module that it is given to run.
        {name: _prepared(config, step(model, objectives, pruning, _WORDS)) for name, pruning in variants.items()},
        {name: pretraining_macs(model, pruning, sizes) for name, pruning in variants.items()},
        _INCLUDES[config.backbone],
    )


_INCLUDES: Mapping[str, str] = {
    "albef": "pre-training step: pixels to float, masking, online and momentum towers, itc + itm + mlm, backward",
    "clip": "pre-training step: pixels to float, both towers, symmetric contrast, backward",
}


def _step_sizes(config: BenchConfig, objectives: ObjectiveConfig, task: Pretraining) -> StepSizes:
    """Those of random texts; without a momentum tower there is no queue, and no word is masked."""
    queue, words = 0, 0.0
    if task.memory is not None:
        batch, queue = random_batch(config), objectives.queue
        masked = mask_words(batch.token_ids, batch.token_mask, batch.draw_seeds, objectives.mask_share, _WORDS)
        words = len(masked.target_M) / config.batch
    return StepSizes(text_length=config.text_length, keys=config.batch + queue, words=words)


def _step_bench(config: BenchConfig) -> Bench:
    parts, batch = step_parts(config), random_batch(config)
    cases = {name: Case(partial(parts.total, name, batch), None, parts.macs[name]) for name in parts.forwards}

    def standing() -> Iterator[Tensor]:
        yield from parts.model.parameters()
        yield from parts.task.tensors().values()

    includes = f"{parts.includes}; without optimizer, momentum update and queue update"
    return Bench(cases, parts.model, standing, lambda: parts.task.after_update(1.0), includes)


def random_batch(config: BenchConfig) -> ImageTextBatch:
    """Random pixels and words; no text is padded."""
    size, rows = config.image_size, torch.arange(config.batch)
    names = [str(row) for row in range(config.batch)]
    return ImageTextBatch(
        pixels=torch.randint(0, 256, (config.batch, 3, size, size), dtype=torch.uint8),
        token_ids=torch.randint(_WORDS.mask + 1, _WORDS.size, (config.batch, config.text_length)),
        token_mask=torch.ones(config.batch, config.text_length, dtype=torch.bool),
        labels=torch.ones(config.batch, dtype=torch.long),
        sample_ids=rows,
        draw_seeds=rows,
        texts=names,
        captions=[[name] for name in names],
        keys=names,
        groups=names,
        clusters=names,
        skipped=[],
    ).to(config.device)
