"""What pruning by captions tells: measured on models that could use it, and the settings that take it away."""

import pytest
import torch

from data_prep.errors import UserError
from pipeline.measure.leak import MASKED, OTHER, OWN, PAIRED, UNPRUNED, Probe, measure_leak
from pipeline.models.config import BackboneName
from pipeline.models.schedule import TokenStream
from pipeline.objectives.config import ObjectiveConfig
from pipeline.objectives.mlm import Vocabulary
from pipeline.pretrain import check_guidance
from pipeline.pruning.config import PruningConfig
from pipeline.pruning.elip import ElipConfig
from pipeline.tasks.pretraining import Pretraining
from tests.pipeline.small import WORDS, scale, small_batch, small_config, small_model

PRUNING = PruningConfig(elip=ElipConfig(depths=(1, 1, 2), ratios=(0.8, 0.5)))
VOCABULARY = Vocabulary(mask=4, size=WORDS - 2)


def probe(backbone: BackboneName, pruning: PruningConfig = PRUNING) -> Probe:
    model = small_model(backbone).eval()
    return Probe(model=model, pruning=pruning, words=VOCABULARY, mask_share=0.3, normalise=scale)


@pytest.mark.parametrize(
    ("backbone", "tasks"),
    [
        ("albef", {"retrieval by contrast", "matching", "masked words"}),
        ("blip", {"retrieval by contrast", "matching", "captions"}),
        ("meter", {"matching", "masked words"}),
        ("clip", {"retrieval by contrast"}),
    ],
)
def test_each_task_is_looked_at_with_each_way_of_pruning(backbone: BackboneName, tasks: set[str]) -> None:
    rows = measure_leak(probe(backbone), [small_batch(6, seed=s) for s in (0, 1)])
    tasks = tasks | {"selection"}
    assert {row["task"] for row in rows} == tasks
    by = {task: {row["pruned_by"] for row in rows if row["task"] == task} for task in tasks}
    ways = {"retrieval by contrast": OTHER, "matching": PAIRED, "masked words": MASKED, "captions": OTHER}
    ways["selection"] = OTHER
    assert by == {task: {UNPRUNED, OWN, ways[task]} for task in tasks}
    for row in rows:
        assert row["low"] <= row["value"] <= row["high"]
        assert (row["pruned_by"] != UNPRUNED) or row["difference"] == 0
        assert ("leak" in row) == (row["pruned_by"] == OWN)
    assert {row["samples"] for row in rows if row["task"] in ("retrieval by contrast", "matching")} == {12}


def test_a_caption_that_leaks_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the guiding text is written into the image's CLS, retrieval finds it without having looked."""
    leaking = probe("clip")
    model = leaking.model
    inner = Probe.image

    def write(self: Probe, pixels: torch.Tensor, text: TokenStream | None, seeds_B: torch.Tensor) -> TokenStream:
        image = inner(self, pixels, text, seeds_B)
        if text is None:
            return image
        told_BD = model.text_feature(text) @ torch.linalg.pinv(model.vision_proj.weight).T
        return image.with_x(torch.cat([told_BD[:, None], image.x[:, 1:]], 1))

    monkeypatch.setattr(Probe, "image", write)
    rows = measure_leak(leaking, [small_batch(6), small_batch(6, seed=1)])
    found = {row["pruned_by"]: row for row in rows if row["metric"] == "TR R@1"}
    assert found[OWN]["value"] == 100.0 and found[OWN]["difference_low"] > 0
    assert found[OTHER]["value"] == 0.0
    assert (found[OWN]["leak"], found[OWN]["leak_low"]) == (100.0, 100.0)


@pytest.mark.parametrize(("share", "least", "most"), [(1.0, 100.0, 100.0), (0.0, 10.0, 99.0)])
def test_what_the_caption_decides_is_seen_in_the_patches(share: float, least: float, most: float) -> None:
    """With λ = 1 no word of it counts; with λ = 0 another caption keeps other patches."""
    elip = ElipConfig(depths=(1, 1, 2), ratios=(0.8, 0.5), vision_weight=share)
    rows = measure_leak(probe("albef", PruningConfig(elip=elip)), [small_batch(6), small_batch(6, seed=1)])
    kept = {row["pruned_by"]: row for row in rows if row["task"] == "selection"}
    assert kept[OWN]["value"] == kept[UNPRUNED]["value"] == 100.0
    assert least <= kept[OTHER]["value"] <= most
    assert kept[OWN]["leak"] == pytest.approx(100.0 - kept[OTHER]["value"])
    if share == 1.0:
        assert all(row["leak"] == 0 for row in rows if "leak" in row)


def test_pruning_that_no_text_guides_cannot_leak() -> None:
    with pytest.raises(UserError, match="only text-guided pruning"):
        measure_leak(probe("albef", PruningConfig(method="flip")), [small_batch(4)])


def selections_of(sentence: str) -> dict[int, torch.Tensor]:
    elip = ElipConfig(depths=(1, 1, 2), ratios=(0.8, 0.5), sentence=sentence, vision_weight=0.0)  # type: ignore[arg-type]
    task = Pretraining(
        small_model("albef"), ObjectiveConfig(queue=0, mask_share=0.9), PruningConfig(elip=elip), VOCABULARY, scale,
        torch.Generator(),
    )  # fmt: skip
    scores = {}
    inner = task.online.pruned_image

    def look(pixels, sentence, seeds):
        scores[0] = sentence
        return inner(pixels, sentence, seeds)

    task.online.pruned_image = look  # type: ignore[method-assign]
    task.losses(task.module, small_batch(4), 1.0)
    return scores


def test_the_guiding_sentence_is_the_one_asked_for() -> None:
    own, masked, other = (selections_of(sentence)[0] for sentence in ("own", "masked", "other"))
    torch.testing.assert_close(other, own.roll(-1, 0))
    assert not torch.allclose(masked, own)


@pytest.mark.parametrize(("backbone", "sentence"), [("blip", "masked"), ("meter", "other"), ("clip", "masked")])
def test_a_sentence_that_a_backbone_has_not_is_refused(backbone: BackboneName, sentence: str) -> None:
    elip = ElipConfig(depths=(1, 1, 2), ratios=(0.8, 0.5), sentence=sentence)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=rf"sentence={sentence} is for"):
        check_guidance(PruningConfig(elip=elip), small_config(backbone=backbone))
