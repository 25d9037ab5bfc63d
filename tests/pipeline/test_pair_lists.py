"""What ALBEF's lists are scored by: pairs of pictures without NLVR2's identifiers, relations without SNLI-VE's."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from data_prep.errors import UserError
from data_prep.shapes_published import write_published
from data_prep.sources import SourceConfig, prepare
from pipeline.data.loader import StepLoader
from pipeline.evaluation.exported import Evaluation, evaluate_export
from pipeline.evaluation.opened import open_export
from pipeline.metrics.tally import Nlvr2Tally
from pipeline.process import Process
from pipeline.tasks.classes import SNLI_VE
from pipeline.tasks.classification import ClassificationModel
from tests.pipeline.evaluation.exports import statement_export
from tests.pipeline.evaluation.test_retrieval import on_rank
from tests.pipeline.small import small_batch
from tests.pipeline.test_task_stages import drawn_of, evaluated, trained


def test_pairs_are_told_apart_by_their_identifiers() -> None:
    batch = replace(small_batch(3), ids=["dev-0-0-1", "dev-0-1-1", "dev-0-0-1"])
    with pytest.raises(UserError, match=r"id 'dev-0-0-1' stands twice in this split"):
        Nlvr2Tally().add(batch, [0, 1, 1], ("false", "true"))


def test_pairs_without_identifiers_have_an_accuracy_alone() -> None:
    labels, clusters = torch.tensor([0, 1, 0]), ["dev-0", "dev-0", "dev-1"]
    ids = ["dev-0-0-1", "nlvr2/dev-0-1-img0.png nlvr2/dev-0-1-img1.png 0 1", "dev-1-0-0"]
    batch, tally = replace(small_batch(3), ids=ids, labels=labels, clusters=clusters), Nlvr2Tally()
    tally.add(batch, [0, 1, 1], ("false", "true"))
    assert [(one.metric, one.value, one.samples) for one in tally.scores()] == [("accuracy", pytest.approx(200 / 3), 3)]
    assert tally.lacking is not None and f"1 of 3 pairs, {batch.keys[1]} the first, have no identifier" in tally.lacking


ALBEF_LIST = "nlvr_test.json"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("identified", [False, True])
def test_albefs_lists_of_pairs_are_judged_as_nlvr2s_own_files(identified: bool, tmp_path: Path) -> None:
    root = tmp_path / "root"
    drawn = drawn_of("nlvr2", root)
    lines = [json.loads(line) for line in (root / "raw/test1.json").read_text().splitlines()]
    (tmp_path / ALBEF_LIST).write_text(json.dumps([listed(line, identified) for line in lines]))
    source = SourceConfig(name="albef", annotations=(str(tmp_path / ALBEF_LIST),), images=(str(root / "raw/images"),))
    prepare(source, root / "data", workers=1)
    trained(drawn, "albef", tmp_path / "trim", target=1.0)
    exports = {"trim": tmp_path / "trim/export"}
    own, theirs = (
        {
            row["metric"]: row
            for row in evaluated(drawn, tmp_path / split, exports, **{"evaluate.statement_splits": [split]})
        }
        for split in ("test1", "test")
    )
    assert set(own) == {"accuracy", "consistency"} and set(theirs) == ({*own} if identified else {"accuracy"})
    for metric, row in theirs.items():
        assert [row[key] for key in ("value", "low", "high")] == [own[metric][key] for key in ("value", "low", "high")]
    assert (tmp_path / "test/predictions/trim-test.csv").exists() == identified
    assert (tmp_path / "test/unscored/trim-test.json").exists() != identified
    asked = Evaluation(model=tmp_path / "trim/export", task="nlvr2", split=str(root / "data/test"))
    assert ("lacking" in evaluate_export(asked, Process())) != identified
    assert evaluate_export(replace(asked, limit=1), Process())["gmacs"]["mean"] == pytest.approx(counted_gmacs(asked))
    if not identified:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StepLoader, "__iter__", lambda loader: pytest.fail("the split is judged for nothing"))
            with pytest.raises(UserError, match=r"--predictions .*x\.csv cannot be written: .* has no identifier"):
                evaluate_export(replace(asked, predictions=tmp_path / "x.csv"), Process())
        validation = {"split": "test", "every_steps": 1, "metric": "consistency"}
        with pytest.raises(UserError, match=r"metric=consistency cannot be told of 'test': .* has no identifier"):
            trained(drawn, "albef", tmp_path / "refused", target=1.0, run={"trim.validation": validation})
        assert not (tmp_path / "refused/metrics.jsonl").exists()


def test_relations_of_albefs_lists_are_judged_as_snli_ves_own(tmp_path: Path) -> None:
    write_published("snli_ve", tmp_path / "raw", {"dev": 4}, 32, 0)
    lines = [json.loads(line) for line in (tmp_path / "raw/snli_ve_dev.jsonl").read_text().splitlines()]
    listed = [{"sentence": line["sentence2"], "label": line["gold_label"]} for line in lines]
    names = [{"image": f"flickr30k-images/{line['Flickr30K_ID']}.jpg"} for line in lines]
    (tmp_path / "ve_dev.json").write_text(json.dumps([a | b for a, b in zip(listed, names, strict=True)]))
    given = {"annotations": (str(tmp_path / "ve_dev.json"),), "images": (str(tmp_path / "raw/flickr30k-images"),)}
    prepare(SourceConfig(name="albef", **given), tmp_path / "lists", workers=1)
    prepare(SourceConfig(name="snli_ve", root=str(tmp_path / "raw")), tmp_path / "data", workers=1)
    export = statement_export(tmp_path / "export", SNLI_VE)
    own, theirs = (
        Evaluation(model=export, task="snli_ve", split=str(tmp_path / part / "dev")) for part in ("data", "lists")
    )
    found, wanted = on_rank(Process(), theirs), on_rank(Process(), own)
    assert [(one["metric"], one["value"]) for one in found["scores"]] == [("accuracy", wanted["scores"][0]["value"])]
    assert found["samples"] == len(lines) and f"{len(lines)} of {len(lines)} relations" in found["more"]["lacking"]
    assert "lacking" not in wanted["more"]
    with pytest.raises(UserError, match=r"--predictions .*x\.jsonl cannot be written: .* has no pair_id"):
        on_rank(Process(), replace(theirs, predictions=tmp_path / "x.jsonl"))


def counted_gmacs(asked: Evaluation) -> float:
    """What torch counts of the first pair of a split, its text without padding."""
    model, source = open_export(asked.model, "nlvr2", asked.split)
    assert isinstance(model, ClassificationModel)
    batch = next(iter(source.batches("pairs", 1, Process(), 1)))
    length = int(batch.token_mask.sum())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.classify(source.normalise(batch.pixels), batch.token_ids[:, :length], batch.token_mask[:, :length], [])
    return counter.get_total_flops() / 2e9


def listed(line: dict[str, Any], identified: bool) -> dict[str, Any]:
    """A line of NLVR2's own file as ALBEF's lists have it."""
    stem = line["identifier"].rpartition("-")[0]
    more = {"identifier": line["identifier"]} if identified else {}
    images = [f"nlvr2/images/test1/{stem}-img{side}.png" for side in (0, 1)]
    return {"sentence": line["sentence"], "label": line["label"], "images": images, **more}
