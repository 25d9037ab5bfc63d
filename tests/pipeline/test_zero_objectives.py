"""One step and fifty of every backbone's objectives: ZeRO 0-3 on two ranks give what one plain process gives."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.models.config import BackboneName
from pipeline.process import Process
from pipeline.tensor_files import write_tensors
from tests.pipeline.distributed import run_ranks
from tests.pipeline.zero import BETAS, SmallRun, engine_config, whole_state

BACKBONES: list[BackboneName] = ["albef", "blip", "meter", "clip"]
Shapes = dict[str, list[int]]


def one_step(
    process: Process, folder: Path, backbone: BackboneName, stage: int | None, accumulation: int = 1
) -> tuple[list[float], Shapes]:
    """Its losses; the optimizer's state, from which its gradients are read, goes into the folder."""
    run = SmallRun(process, engine_config(stage, grad_clip=0.0, accumulation=accumulation), backbone)
    losses = run.step()
    state = run.engine.state()
    write_tensors(folder / f"{process.rank}.safetensors", state.fragments)
    run.engine.close()
    return losses, state.values["shapes"]


def gradients(folder: Path, shapes: Shapes) -> dict[str, Tensor]:
    """AdamW's first moment after one step is the gradient but for a factor."""
    moments = whole_state(list(folder.iterdir()), shapes, ("exp_avg",))
    return {name: moment / (1 - BETAS[0]) for name, moment in moments.items()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[float], dict[str, Tensor]]]:
    found = {}
    for backbone in BACKBONES:
        folder = tmp_path_factory.mktemp(backbone)
        losses, shapes = one_step(Process(), folder, backbone, None)
        found[backbone] = losses, gradients(folder, shapes)
    return found


@pytest.mark.timeout(240)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_losses_and_gradients_are_those_of_one_process(
    backbone: BackboneName,
    stage: int,
    tmp_path: Path,
    expected: dict[str, tuple[list[float], dict[str, Tensor]]],
) -> None:
    losses, wanted = expected[backbone]
    results = run_ranks(one_step, 2, tmp_path, backbone, stage, timeout=150)
    for found, _ in results:
        assert found == pytest.approx(losses, rel=1e-5, abs=1e-5)
    given = gradients(tmp_path, results[0][1])
    assert set(given) == set(wanted) and any(tensor.abs().max() > 1e-3 for tensor in wanted.values())
    for name, tensor in wanted.items():
        torch.testing.assert_close(given[name].reshape(tensor.shape), tensor, rtol=1e-5, atol=1e-5, msg=name)


def steps_of(process: Process, backbone: BackboneName, stage: int | None, steps: int) -> list[list[float]]:
    run = SmallRun(process, engine_config(stage), backbone)
    found = [run.step() for _ in range(steps)]
    run.engine.close()
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_fifty_steps_are_those_of_one_process(backbone: BackboneName, stage: int) -> None:
    wanted = [losses[0] for losses in steps_of(Process(), backbone, None, 50)]
    found = [losses[0] for losses in run_ranks(steps_of, 2, backbone, stage, 50, timeout=400)[0]]
    assert wanted[-1] < wanted[0]
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-4)
