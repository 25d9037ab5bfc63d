"""One step and fifty of every backbone's objectives: ZeRO 0-3 on one and two ranks give what one plain process gives.

What chance and pruning chose is the same everywhere (`tests/pipeline/recorded.py`).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from pipeline.models.config import BackboneName
from pipeline.process import Process
from pipeline.pruning.config import PruningConfig
from pipeline.pruning.elip import ElipConfig
from pipeline.tensor_files import write_tensors
from tests.pipeline.distributed import run_ranks
from tests.pipeline.recorded import Selections, give_negatives, record_selections, replay_selections
from tests.pipeline.zero import BATCH, BETAS, UNPRUNED, SmallRun, engine_config, whole_state

OBJECTIVES: dict[BackboneName, list[str]] = {
    "albef": ["itc", "itm", "mlm"],
    "blip": ["itc", "itm", "lm"],
    "meter": ["itm", "mlm"],
    "clip": ["itc"],
}
PRUNED = PruningConfig(prune_momentum=True, elip=ElipConfig(depths=(1, 1), ratios=(0.5,)))
NO_MOMENTUM = {"momentum": 0.0, "alpha": 0.0}
"""The tower is the online model of each step, and gives no soft labels."""
LAYOUTS = [pytest.param(1, stage, marks=pytest.mark.slow) for stage in (0, 1, 2, 3)]
LAYOUTS += [pytest.param(2, stage) for stage in (0, 1, 2, 3)]
STEPS = 50


@dataclass(frozen=True)
class Case:
    """What is minimised, and how."""

    name: str
    only: str | None = None
    pruned: bool = False
    constants: dict[str, Any] = field(default_factory=dict)

    def run(self, process: Process, stage: int | None, backbone: BackboneName) -> SmallRun:
        pruning = PRUNED if self.pruned else UNPRUNED
        run = SmallRun(process, engine_config(stage, grad_clip=0.0), backbone, pruning=pruning, **self.constants)
        give_negatives(run.task.online, BATCH)
        return run


def cases(backbone: BackboneName) -> list[Case]:
    found = [Case("all"), Case("all pruned", pruned=True)]
    found += [Case(f"only {name}", only=name) for name in OBJECTIVES[backbone]]
    if backbone in ("albef", "blip"):
        found.append(Case("all without momentum", constants=NO_MOMENTUM))
    return found


@dataclass
class Step:
    """What one update came to; its gradients are read from files, for each rank holds a part."""

    loss: float
    norm: float
    named: dict[str, float]
    shapes: dict[str, list[int]]
    selections: list[Selections]


def first_steps(
    process: Process, folder: Path, backbone: BackboneName, stage: int | None, recorded: dict[str, list[Selections]]
) -> dict[str, Step]:
    """One update of each case; the optimizer's state, from which its gradients are read, goes into the folder."""
    found = {}
    for case in cases(backbone):
        run, selections = case.run(process, stage, backbone), []
        if case.pruned and recorded:
            replay_selections(run.task.online, recorded[case.name], BATCH)
        elif case.pruned:
            selections = record_selections(run.task.online)
        loss, norm = run.step(case.only)
        state = run.engine.state()
        place = folder / case.name
        place.mkdir(parents=True, exist_ok=True)
        write_tensors(place / f"{process.rank}.safetensors", state.fragments)
        found[case.name] = Step(loss, norm, run.named, state.values["shapes"], selections)
        run.engine.close()
    return found


def gradients(folder: Path, step: Step) -> dict[str, Tensor]:
    """AdamW's first moment after one step is the gradient but for a factor."""
    moments = whole_state(list(folder.iterdir()), step.shapes, ("exp_avg",))
    return {name: moment / (1 - BETAS[0]) for name, moment in moments.items()}


Expected = dict[BackboneName, tuple[dict[str, Step], Path]]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Expected:
    found: Expected = {}
    for backbone in OBJECTIVES:
        folder = tmp_path_factory.mktemp(backbone)
        found[backbone] = first_steps(Process(), folder, backbone, None, {}), folder
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("world", "stage"), LAYOUTS)
@pytest.mark.parametrize("backbone", OBJECTIVES)
def test_losses_and_gradients_are_those_of_one_process(
    backbone: BackboneName, world: int, stage: int, tmp_path: Path, expected: Expected
) -> None:
    wanted, place = expected[backbone]
    recorded = {name: step.selections for name, step in wanted.items()}
    results = on(world, first_steps, tmp_path, backbone, stage, recorded)
    for name, step in wanted.items():
        assert set(step.named) == set(OBJECTIVES[backbone])
        for result in results:
            assert [result[name].loss, result[name].norm] == pytest.approx([step.loss, step.norm], rel=1e-5)
        for objective, value in step.named.items():
            mean = sum(result[name].named[objective] for result in results) / world
            assert mean == pytest.approx(value, rel=1e-5), (name, objective)
        compare(gradients(tmp_path / name, results[0][name]), gradients(place / name, step), name)
    assert wanted["all pruned"].loss != wanted["all"].loss


def compare(given: dict[str, Tensor], wanted: dict[str, Tensor], name: str) -> None:
    """Each element to 1e-5 of the largest of its tensor; where all are noise, of the largest of all."""
    assert set(given) == set(wanted)
    largest = max(float(tensor.abs().max()) for tensor in wanted.values())
    assert largest > 1e-3
    for parameter, tensor in wanted.items():
        error = float((given[parameter].reshape(tensor.shape) - tensor).abs().max())
        assert error <= 1e-5 * max(float(tensor.abs().max()), 0.01 * largest), (name, parameter, error)


def curve(process: Process, backbone: BackboneName, stage: int | None, constants: dict[str, Any]) -> list[float]:
    run = Case("curve", constants=constants).run(process, stage, backbone)
    found = [run.step()[0] for _ in range(STEPS)]
    run.engine.close()
    return found


CURVES = [(backbone, {}) for backbone in OBJECTIVES] + [("albef", NO_MOMENTUM), ("blip", NO_MOMENTUM)]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("backbone", "constants"), CURVES, ids=str)
def test_fifty_steps_are_those_of_one_process(backbone: BackboneName, constants: dict[str, Any]) -> None:
    wanted = curve(Process(), backbone, None, constants)
    # Each batch is another one of noise, so losses need not fall; yet what was learned must show in the last.
    untrained = curve(Process(), backbone, None, {**constants, "lr": 1e-12})
    assert abs(wanted[-1] - untrained[-1]) > 100 * 1e-4
    for stage in (0, 1, 2, 3):
        found = on(2, curve, backbone, stage, constants)[0]
        largest = max(abs(a - b) for a, b in zip(found, wanted, strict=True))
        print(f"{backbone} {constants} ZeRO {stage}: losses differ by {largest:.1e} at most")
        assert largest <= 1e-4, f"ZeRO {stage}"


def on(world: int, work: Any, *args: object) -> list[Any]:
    """Runs work on so many ranks."""
    return [work(Process(), *args)] if world == 1 else run_ranks(work, world, *args, timeout=240)
