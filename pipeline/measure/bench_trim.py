"""`trimline bench trim`: a model with trimmers that decide for themselves, packed, against the untrimmed one.

B batch, L text tokens, D width.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline.limits import at_least
from pipeline.measure.timing import interleave, paired_ratios, spread
from pipeline.models.build import build_model
from pipeline.models.config import ModelConfig
from pipeline.models.schedule import TokenStream, site
from pipeline.tasks.classification import ClassificationModel
from pipeline.trimming.calibrate import calibrate
from pipeline.trimming.cost import solve_share, units_of
from pipeline.trimming.fixed import decay_rate
from pipeline.trimming.smarttrim import Decision
from pipeline.trimming.trimmers import HeadTrimmer, TokenTrimmer, TrimmerConfig, Trimmers, group_of

REFERENCE = "full"
_CALIBRATED_ON = 4
_SPREAD = 0.5
_FAR = 1e3  # beyond every score
_APART = 1 << 20  # seeds of two batches
# Scores that differ from token to token and from instance to instance, as trained ones do.
_UNDECIDED = TrimmerConfig(keep_bias=0.0, last_std=0.5)


@dataclass(frozen=True, kw_only=True)
class BenchTrimConfig:
    """What is measured, and how.

    Attributes:
        targets: Wanted speed-ups in multiply-accumulates, each above 1, over the full model without padding.
        text_length: Tokens of a text; of several they are drawn from half as many to half as many more.
        batch: B.
        batches: Different ones that a lap goes through, one after the other.
        dtype: ``bfloat16`` runs under autocast.
        device: Where it runs.
        threads: Of torch on the CPU.
        rounds: Rounds that count; each runs every variant once.
        warmup: Rounds before them.
        seed: Of weights, inputs and the order in a round.
    """

    targets: tuple[float, ...] = (1.5, 2.0, 2.5, 3.0)
    text_length: int = 10
    batch: int = 1
    batches: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1
    rounds: int = 10
    warmup: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, "bench", 1, "batch", "batches", "threads", "rounds", "warmup")
        at_least(self, "bench", 2, "text_length")
        if not self.targets or min(self.targets) <= 1:
            raise UserError(f"bench.targets={list(self.targets)} must be speed-ups above 1, such as 1.5,2,2.5,3")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("bench.device=cuda: torch finds no GPU on this machine; give cpu")


@dataclass(frozen=True)
class _Inputs:
    """A batch: (B, 3, height, width) pixels, (B, L) ids and which of them are there."""

    pixels: Tensor
    ids_BL: Tensor
    mask_BL: Tensor

    def first(self, count: int) -> "_Inputs":
        return _Inputs(self.pixels[:count], self.ids_BL[:count], self.mask_BL[:count])


def runs_of(config: BenchTrimConfig) -> int:
    """How often `run_trim_bench` calls `tick`."""
    return (1 + len(config.targets)) * (config.warmup + config.rounds + 1)


@torch.inference_mode()
def run_trim_bench(
    model: ModelConfig, config: BenchTrimConfig, tick: Callable[[str], None] = lambda name: None
) -> dict[str, Any]:
    """Times the full model and one trimmed to each target in turn, on the same instances.

    Weights are random. The trimmers' scores are shifted until they reach a target, as `smarttrim.calibrate` does after
    training, and decide by themselves in every run.

    Args:
        model: Backbone and sizes.
        config: What and how; `torch.set_num_threads` is called with its threads.
        tick: Called after each run, `runs_of` times in all.

    Returns:
        The object that `trimline bench trim --json` prints, without what the launcher knows of the machine.

    Raises:
        UserError: The text is too long, or the backbone judges no statements.
    """
    torch.set_num_threads(config.threads)
    batches = [_inputs(model, config, number) for number in range(config.batches)]
    models = {REFERENCE: _model(model, config, None)}
    models |= {f"{target:g}x": _model(model, config, target) for target in config.targets}
    runs = {name: partial(_seconds, partial(_lap, each, batches, config), config) for name, each in models.items()}
    laps = interleave(runs, rounds=config.rounds, warmup=config.warmup, seed=config.seed, tick=tick)
    rows = []
    for name, each in models.items():
        rows.append({"name": name, **_timing(laps[name], laps[REFERENCE]), **_work(each, batches, config)})
        tick(name)
    for row in rows:
        row["flops_ratio"] = rows[0]["gmacs"] / row["gmacs"]
        row["realised"] = row["ratio"] / row["flops_ratio"]
    gpu = torch.cuda.get_device_name() if config.device == "cuda" else None
    stated = {key: list(value) if key == "targets" else value for key, value in asdict(config).items()}
    full = models[REFERENCE]
    padding = fmean(_macs(full, each, None) for each in batches) / fmean(_full_macs(full, each) for each in batches)
    more = {"device_name": gpu, **stated, "padding": padding}
    return {"reference": REFERENCE, **more, "rows": rows, "torch": torch.__version__}


def _inputs(model: ModelConfig, config: BenchTrimConfig, number: int = 0) -> _Inputs:
    draw = torch.Generator().manual_seed(config.seed + _APART * number)
    size, length = config.batch, config.text_length
    alone = size * config.batches == 1
    least, most = (length, length) if alone else (round(length * (1 - _SPREAD)), round(length * (1 + _SPREAD)))
    if most > model.text.longest:
        raise UserError(f"bench.text_length={length} makes texts of {most}; the model takes {model.text.longest}")
    lengths_B = torch.randint(max(2, least), most + 1, (size,), generator=draw)
    mask_BL = torch.arange(int(lengths_B.max())) < lengths_B[:, None]
    ids_BL = torch.randint(5, model.text.vocab_size, mask_BL.shape, generator=draw)
    pixels = torch.randn(size, 3, model.vision.height, model.vision.width_px, generator=draw)
    return _Inputs(
        *(part.to(config.device) for part in (pixels, ids_BL.masked_fill(~mask_BL, model.text.pad_id or 0), mask_BL))
    )


def _model(sizes: ModelConfig, config: BenchTrimConfig, target: float | None) -> ClassificationModel:
    torch.manual_seed(config.seed)
    backbone = build_model(sizes)
    model = ClassificationModel(backbone, None if target is None else _UNDECIDED).to(config.device).eval()
    if target is not None:
        assert isinstance(model.trimmers, Trimmers)
        together = max(config.batch, min(_CALIBRATED_ON, config.batch * config.batches))
        few = _inputs(sizes, replace(config, batch=together)).first(_CALIBRATED_ON)
        _spread_over_layers(model, few, config, target)
        calibrate(model.trimmers, partial(_cost_share, model, few, config), 1 / target)
    return model


def _spread_over_layers(model: ClassificationModel, inputs: _Inputs, config: BenchTrimConfig, target: float) -> None:
    """Sets every trimmer's bias, so that all groups keep the share that gives the target, deep layers fewer tokens."""
    assert isinstance(model.trimmers, Trimmers)
    units = units_of(model.backbone, inputs.mask_BL)
    share = solve_share(model.cost_model(), units, target)
    sites = [(site(step, advance), advance) for step in model.backbone.schedule for advance in step.advances]
    sites = [each for each in sites if each[0] in model.trimmers]
    handles = []
    for group in ("vision", "text"):
        own = [name for name, advance in sites if group_of(advance.stream) == group]
        for layer, name in enumerate(own, 1):
            part = model.trimmers.part(name)
            assert isinstance(part.tokens, TokenTrimmer)
            wanted = float(units.of(group).sum()) * decay_rate(share, len(own)) ** layer
            handles.append(part.tokens.register_forward_hook(partial(_keep_tokens, wanted=round(wanted))))
            for heads in (part.self_heads, part.cross_heads):
                if isinstance(heads, HeadTrimmer):
                    handles.append(heads.register_forward_hook(partial(_keep_heads, share=share)))
    _classify(model, inputs, config)
    for handle in handles:
        handle.remove()


def _keep_tokens(trimmer: TokenTrimmer, given: tuple[TokenStream, ...], scores_T: Tensor, wanted: int) -> Tensor:
    offsets = given[0].offsets
    assert offsets is not None, "trimming is timed packed"
    words_T = torch.ones_like(scores_T, dtype=torch.bool)
    words_T[list(offsets[:-1])] = False  # the class tokens, which stay
    return scores_T + _shift_to_keep(trimmer, scores_T[words_T], wanted)


def _keep_heads(trimmer: HeadTrimmer, _: tuple[Tensor, ...], scores_BH: Tensor, share: float) -> Tensor:
    return scores_BH + _shift_to_keep(trimmer, scores_BH.flatten(), round(share * scores_BH.numel()))


def _shift_to_keep(trimmer: TokenTrimmer | HeadTrimmer, scores: Tensor, wanted: int) -> float:
    """Shifts a trimmer's bias so that this many of the scores are above zero."""
    ends = scores.new_tensor([_FAR]), scores.new_tensor([-_FAR])
    ordered = torch.cat([ends[0], scores.sort(descending=True).values, ends[1]])
    shift = -float(ordered[min(wanted, len(scores)) :][:2].mean())
    trimmer.shift(shift)
    return shift


def _classify(model: ClassificationModel, inputs: _Inputs, config: BenchTrimConfig) -> Mapping[str, Decision] | None:
    """What was decided; None for the full model."""
    trimming = model.trimming(inputs.ids_BL, inputs.mask_BL)
    with torch.autocast(config.device, torch.bfloat16, enabled=config.dtype == "bfloat16"):
        model.classify(inputs.pixels, inputs.ids_BL, inputs.mask_BL, [] if trimming is None else [trimming])
    return None if trimming is None else trimming.decisions


def _macs(model: ClassificationModel, inputs: _Inputs, decisions: Mapping[str, Decision] | None) -> float:
    """Mean multiply-accumulates of an instance as it runs: the full model's with padding, which packing takes out."""
    if decisions is None:
        return _full_macs(model, replace(inputs, mask_BL=torch.ones_like(inputs.mask_BL)))
    return float(model.cost_model().of(decisions, units_of(model.backbone, inputs.mask_BL)).mean())


def _full_macs(model: ClassificationModel, inputs: _Inputs) -> float:
    """Those of the full model on texts without padding, which targets count from."""
    return float(model.cost_model().full(units_of(model.backbone, inputs.mask_BL)).mean())


def _cost_share(model: ClassificationModel, inputs: _Inputs, config: BenchTrimConfig) -> float:
    return _macs(model, inputs, _classify(model, inputs, config)) / _full_macs(model, inputs)


def _lap(model: ClassificationModel, batches: Sequence[_Inputs], config: BenchTrimConfig) -> None:
    for inputs in batches:
        _classify(model, inputs, config)


def _seconds(run: Callable[[], object], config: BenchTrimConfig) -> float:
    """Of a batch, mean over those of a lap."""
    _wait(config)
    begin = time.perf_counter()
    run()
    _wait(config)
    return (time.perf_counter() - begin) / config.batches


def _wait(config: BenchTrimConfig) -> None:
    if config.device == "cuda":
        torch.cuda.synchronize()


def _timing(laps: Sequence[float], reference: Sequence[float]) -> dict[str, float | str]:
    ratios = spread(paired_ratios(reference, laps))
    return {
        "value": spread(laps).median,
        "unit": "s",
        "ratio": ratios.median,
        "ratio_q1": ratios.low,
        "ratio_q3": ratios.high,
    }


def _work(model: ClassificationModel, batches: Sequence[_Inputs], config: BenchTrimConfig) -> dict[str, Any]:
    """What an instance costs, what is kept, and where a batch's time goes; means over those of a lap."""
    with _watched(model, config) as parts:
        begin = time.perf_counter()
        decided = [_classify(model, inputs, config) for inputs in batches]
        _wait(config)
        total = time.perf_counter() - begin
    parts["rest"] = total - sum(parts.values())
    parts = {name: seconds / len(batches) for name, seconds in parts.items()}
    spent = fmean(_macs(model, *each) for each in zip(batches, decided, strict=True))
    row: dict[str, Any] = {"gmacs": spent / 1e9, "trimmers_share": 0.0, "kept": {}}
    chosen = [(inputs, of) for inputs, of in zip(batches, decided, strict=True) if of is not None]
    if chosen:
        cost, units = model.cost_model(), [units_of(model.backbone, inputs.mask_BL) for inputs, _ in chosen]
        own = fmean(float(cost.own(of, one).mean()) for (_, of), one in zip(chosen, units, strict=True))
        row["trimmers_share"] = own / fmean(_full_macs(model, inputs) for inputs, _ in chosen)
        shares = [cost.kept_shares(of, one) for (_, of), one in zip(chosen, units, strict=True)]
        row["kept"] = {name: fmean(float(each[name]) for each in shares) for name in shares[0]}
    return {**row, "parts": parts}


@contextmanager
def _watched(model: ClassificationModel, config: BenchTrimConfig) -> Iterator[dict[str, float]]:
    """Seconds by part of the model while it runs: the blocks of each stream, and the trimmers."""
    parts: dict[str, float] = {}
    handles = []
    for module, names in _parts(model).items():
        begun: list[float] = []

        def before(*_: object, begun: list[float] = begun) -> None:
            _wait(config)
            begun.append(time.perf_counter())

        def after(_: object, given: _Given, __: object, names: _Names = names, begun: list[float] = begun) -> None:
            _wait(config)
            # A block of both the text and the fusion is in that of them whose sources it is given.
            name = names[bool(given[1])] if len(names) > 1 else next(iter(names.values()))
            parts[name] = parts.get(name, 0.0) + time.perf_counter() - begun.pop()

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield parts
    finally:
        for handle in handles:
            handle.remove()


_Given = tuple[Any, ...]
_Names = Mapping[bool, str]


def _parts(model: ClassificationModel) -> dict[nn.Module, _Names]:
    """The part of the model that each module is in, by whether it attends to sources there."""
    parts: dict[nn.Module, dict[bool, str]] = {}
    for step in model.backbone.schedule:
        for advance in step.advances:
            assert isinstance(advance.block, nn.Module)
            name = step.part if len(step.advances) == 1 else f"{step.part} {advance.stream}"
            parts.setdefault(advance.block, {})[bool(advance.sources)] = name
    trimmers = [module for module in model.modules() if isinstance(module, TokenTrimmer | HeadTrimmer)]
    return {**parts, **{module: {False: "trimmers"} for module in trimmers}}


def parts_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the parts in the order in which they were met, the rest last."""
    names = dict.fromkeys(name for row in rows for name in row["parts"] if name != "rest")
    return [*names, "rest"]
