"""Contrast of a whole update from parts: loss, gradients and queue are those of one large batch in one pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_prep.errors import UserError
from pipeline.data.batch import ImageTextBatch
from pipeline.data.loader import LoaderConfig
from pipeline.engine import EngineConfig, OptimizerConfig
from pipeline.engine_config import LrScalingConfig
from pipeline.loop_config import LoopConfig
from pipeline.models.build import build_model
from pipeline.models.config import BackboneName
from pipeline.objectives.config import ObjectiveConfig
from pipeline.objectives.mlm import Vocabulary
from pipeline.pretrain import PretrainConfig, check_pretrain, describe_pretrain_update, negatives_of_parts
from pipeline.process import Process
from pipeline.pruning.config import PruningConfig
from pipeline.pruning.elip import ElipConfig
from pipeline.tasks.contrasting import Collected, Features, by_chance, chances
from pipeline.tasks.pretraining import Pretraining
from pipeline.worker import run_job
from tests.pipeline.distributed import run_ranks
from tests.pipeline.small import OTHER_BACKBONES, WORDS, scale, small_batch, small_config
from tests.pipeline.test_train import data, interrupt_after, job_of, losses
from tests.pipeline.zero import SmallRun, engine_config

__all__ = ["data"]  # the fixture

BATCH, PARTS = 12, 3
EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}
CONTRASTING: list[BackboneName] = ["albef", "blip", "clip"]
PRUNED = PruningConfig(prune_momentum=True, elip=ElipConfig(depths=(1, 1), ratios=(0.5,)))


@contextmanager
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def task_of(backbone: BackboneName, dropout: float = 0.0, cache: bool = True) -> Pretraining:
    torch.manual_seed(0)
    config = small_config(2, backbone)
    model = build_model(replace(config, text=replace(config.text, dropout=dropout)))
    objectives = ObjectiveConfig(queue=18, mask_share=0.4, contrast_chunk=5, contrast_cache=cache)
    words = Vocabulary(mask=4, size=WORDS - 2)
    return Pretraining(model, objectives, PRUNED, words, scale, torch.Generator().manual_seed(0))


def rows_of_rank(process: Process, parts: int) -> list[ImageTextBatch]:
    share = BATCH // process.world_size
    own = small_batch(BATCH).part(slice(process.rank * share, (process.rank + 1) * share))
    return [own.part(slice(start, start + share // parts)) for start in range(0, share, share // parts)]


Found = tuple[list[Tensor], dict[str, Tensor], dict[str, Tensor]]


def contrasted(process: Process, backbone: BackboneName, parts: int) -> Found:
    """Each part's contrastive loss, its gradients, and the queue afterwards."""
    with float64():
        task, values = task_of(backbone), []
        task.before_update(1.0)
        for found in task.losses_of_parts(task.module, rows_of_rank(process, parts), 1.0):
            values.append(found.named["itc"].detach())
            (found.named["itc"] / parts).backward()
        task.after_update(1.0)
        return values, {n: p.grad for n, p in task.model.named_parameters() if p.grad is not None}, task.tensors()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("backbone", CONTRASTING)
@pytest.mark.parametrize(("ranks", "parts"), [(1, PARTS), (2, PARTS), (2, 1)])
def test_loss_gradients_and_queue_are_those_of_the_whole_batch_in_one_pass(
    backbone: BackboneName, ranks: int, parts: int
) -> None:
    (wanted, *_), gradients, queue = contrasted(Process(), backbone, 1)
    alone = ranks == 1
    found = [contrasted(Process(), backbone, parts)] if alone else run_ranks(contrasted, ranks, backbone, parts)
    for part in range(parts):
        torch.testing.assert_close(sum(values[part] for values, *_ in found) / ranks, wanted, **EXACT)
    assert gradients["temp"].abs() > 1e-3
    for name, gradient in gradients.items():
        mean = sum(given[name] for _, given, _ in found) / ranks
        torch.testing.assert_close(mean, gradient, **EXACT, msg=name)
    for *_, given in found:
        torch.testing.assert_close(given, queue, **EXACT)


@pytest.mark.parametrize("backbone", CONTRASTING)
def test_dropout_is_the_same_in_both_passes(backbone: BackboneName) -> None:
    """Against one graph over all parts, each encoded by its seed; the generator goes on from where it was."""
    with float64():
        task, parts = task_of(backbone, dropout=0.5), rows_of_rank(Process(), PARTS)
        torch.manual_seed(7)
        seeds, collected = chances(PARTS), Collected([])
        for part, seed in zip(parts, seeds, strict=True):
            with by_chance(seed, torch.device("cpu")):
                task._named(task.module, part, 0.4, collected)
        after = torch.get_rng_state()
        whole = {
            name: torch.cat([getattr(seen, name) for seen in collected.seen])
            for name in ("image_BE", "text_BE", *(("image_m_BE", "text_m_BE") if task.memory else ()))
        }
        wanted = task.online.contrast(Features(**whole), task.model.temp, task.memory, 0.4)
        wanted.backward()
        gradients = {n: p.grad.clone() for n, p in task.model.named_parameters() if p.grad is not None}
        task.module.zero_grad()
        torch.manual_seed(7)
        for found in task.losses_of_parts(task.module, parts, 1.0):
            torch.testing.assert_close(found.named["itc"], wanted, **EXACT)
            (found.named["itc"] / PARTS).backward()
        assert torch.equal(torch.get_rng_state(), after)
        for name, gradient in gradients.items():
            torch.testing.assert_close(task.model.get_parameter(name).grad, gradient, **EXACT, msg=name)


@pytest.mark.parametrize("backbone", ["albef", "blip"])
def test_other_losses_are_those_of_each_part_and_the_queue_takes_an_update_once(backbone: BackboneName) -> None:
    parts, found = rows_of_rank(Process(), PARTS), []
    for cache in (True, False):
        task = task_of(backbone, cache=cache)
        task.before_update(1.0)
        named = [each.named for each in task.losses_of_parts(task.module, parts, 1.0)]
        task.after_update(1.0)
        found.append([{name: loss.detach() for name, loss in each.items()} for each in named])
        assert task.memory is not None and task.memory.queue.next == BATCH % 18
    for cached, plain in zip(*found, strict=True):
        assert set(cached) == set(plain) and cached["itc"] != plain["itc"]
        for name in set(cached) - {"itc"}:
            torch.testing.assert_close(cached[name], plain[name])


def test_graphs_of_two_parts_are_never_alive_together() -> None:
    task, alive = task_of("clip"), []
    named = task._named

    def watched(*given: Any) -> dict[str, Tensor]:
        found = named(*given)
        alive.append([tensor.requires_grad for tensor in found.values()])
        return found

    task._named = watched  # type: ignore[method-assign, assignment]
    for number, each in enumerate(task.losses_of_parts(task.module, rows_of_rank(Process(), PARTS), 1.0)):
        assert alive == [[]] * PARTS + [[True]] * (number + 1)
        each.total.backward()


def updates(process: Process, stage: int | None, backbone: BackboneName, accumulation: int) -> list[list[float]]:
    """Loss and gradient's norm of a few updates by contrast alone."""
    config = engine_config(stage, accumulation=accumulation, grad_clip=0.0)
    run = SmallRun(process, config, backbone, pruning=PRUNED, contrast_cache=True)
    found = [run.step("itc") for _ in range(3)]
    run.engine.close()
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("backbone", ["albef", "clip"])
def test_deepspeed_does_what_one_process_does_in_one_pass(backbone: BackboneName, stage: int) -> None:
    wanted = updates(Process(), None, backbone, 1)
    assert wanted[-1] != wanted[0]
    for found in run_ranks(updates, 2, stage, backbone, 3, timeout=200):
        for update, other in zip(found, wanted, strict=True):
            assert update == pytest.approx(other, rel=2e-5)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backbone", ["albef", "clip"])
def test_training_goes_on_exactly_where_a_checkpoint_left_it(
    backbone: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, whose draws go on too."""
    run = {"model.backbone": backbone, **{f"model.{k}": v for k, v in OTHER_BACKBONES.get(backbone, {}).items()}}
    run |= {"engine.accumulation": 2, "pretrain.objectives.contrast_cache": True}
    whole, folder = tmp_path / "whole", tmp_path / "pretrain"
    run_job(job_of(data, whole, "pretrain", run=run), Process())
    interrupt_after(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_job(job_of(data, folder, "pretrain", run={**run, "pretrain.loop.checkpoint_seconds": 0.0}), Process())
    run_job(job_of(data, folder, "pretrain", run=run), Process())
    assert losses(folder) == losses(whole)
    assert (folder / "export/model.safetensors").read_bytes() == (whole / "export/model.safetensors").read_bytes()
    plain = tmp_path / "plain"
    run_job(job_of(data, plain, "pretrain", run={**run, "pretrain.objectives.contrast_cache": False}), Process())
    assert losses(plain) != losses(whole)


def pretraining(cache: bool = True) -> PretrainConfig:
    loop = LoopConfig(samples=64, global_batch=32)
    return PretrainConfig(loop=loop, objectives=ObjectiveConfig(contrast_cache=cache), pruning=PRUNED)


LOADER = LoaderConfig(height=32, width=32, streams=2, max_tokens=9)


def test_it_is_refused_where_it_cannot_work() -> None:
    with pytest.raises(UserError, match=r"contrast_cache=true is for .*albef, blip, clip, not for meter"):
        check_pretrain(pretraining(), small_config(2, "meter"), LOADER, EngineConfig(accumulation=2), 2)
    with pytest.raises(UserError, match=r"contrast_cache=true does not go with engine\.zero_stage=3"):
        check_pretrain(pretraining(), small_config(2), LOADER, EngineConfig(zero_stage=3, accumulation=2), 2)
    check_pretrain(pretraining(), small_config(2), LOADER, EngineConfig(zero_stage=2, accumulation=2), 2)


def test_the_line_at_the_start_says_what_contrast_is_among() -> None:
    engine = EngineConfig(accumulation=4)
    said = negatives_of_parts(pretraining(), small_config(2), engine, 2)
    assert said == (
        "contrast is among all 32 pairs (and 65536 of the queue), for which each part is encoded twice; "
        "matching draws negatives from 4 pairs"
    )
    scaled = replace(pretraining(), optimizer=OptimizerConfig(lr_scaling=LrScalingConfig(rule="linear", base_batch=8)))
    line = describe_pretrain_update(scaled, small_config(2), engine, 2)
    assert line == f"an update: 32 samples = 2 workers x 4 parts x 4; {said}; learning rate 0.0001 x 32/8 = 0.0004"
    plain = negatives_of_parts(pretraining(cache=False), small_config(2, "clip"), engine, 2)
    assert plain == "contrast is among the 8 pairs of a part over all workers, not among 32"
