"""`trimline score captions` against the COCO server's own program, COCOEvalCap, on the same two files.

As pycocoevalcap's example has it, whose own files are not in its package. Both start METEOR once, which takes longest.
"""

import contextlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from launch.cli import main
from pipeline.metrics import tasks
from pipeline.metrics.captions import MEANS, METRICS, has_spice, missing_for_captions

pytestmark = pytest.mark.skipif(missing_for_captions() is not None, reason=str(missing_for_captions()))

ANNOTATED = {
    102: ["Two cats asleep on a couch", "two cats; one couch", "2 cats -- both sleeping -- on the sofa..."],
    103: [
        "A café\N{RIGHT SINGLE QUOTATION MARK}s “menu” on a naïve painter's T-shirt (in red)",
        "menu of a cafe: 50% off?",
        "猫 on a menu 🙂",
    ],
    104: ["AN OLD CLOCK TOWER.", "the clock  tower\tof a town\n", "the old tower, with clocks"],
    105: ["a plate of food"],
    106: ["nobody has told of this one", "so it is left out"],
}
TOLD = {
    102: "two\ncats sleeping on top of the couch, couch, couch",
    103: "the “menu” of a café 🙂, 50% off",
    104: "An old clock tower",  # in one piece, which METEOR counts as none where pieces add up
    105: "",
}
NAMES = {f"Bleu_{n}": f"BLEU@{n}" for n in (1, 2, 3, 4)} | {"ROUGE_L": "ROUGE-L"}
THERE = [metric for metric in METRICS if metric != "SPICE" or has_spice()]


class _Tokens:
    """In the place of SPICE, whose models the program would fetch from the internet; keeps what it is to score."""

    kept: tuple[Any, Any]

    def method(self) -> str:
        return "nothing"

    def compute_score(self, gts: dict[int, Any], res: dict[int, Any]) -> tuple[float, list[float]]:
        type(self).kept = gts, res
        return 0.0, [0.0] * len(gts)


@dataclass(frozen=True)
class Scored:
    """What the command said and kept, and the program with its tokens and its METEOR process."""

    said: dict[str, Any]
    told: tasks.Told
    program: Any
    tokens: tuple[dict[int, list[str]], dict[int, list[str]]]
    meteor: Any


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scored]:
    from pycocoevalcap import eval as program
    from pycocotools.coco import COCO

    gold, said = (tmp_path_factory.mktemp("captions") / f"{name}.json" for name in ("gold", "said"))
    rows = [{"image_id": image, "caption": text} for image, many in ANNOTATED.items() for text in many]
    about = {"info": {}, "images": [{"id": image} for image in ANNOTATED]}
    gold.write_text(json.dumps({**about, "annotations": [{"id": n, **row} for n, row in enumerate(rows)]}))
    said.write_text(json.dumps([{"image_id": image, "caption": text} for image, text in TOLD.items()]))
    told, judge = [], tasks.told_scores
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(tasks, "told_scores", lambda *given: told.append(judge(*given)) or told[-1])
        words = ["--predictions", str(said), "--annotations", str(gold), "--subset", "--json"]
        assert main(["score", "captions", *words]) == 0
        answer = json.loads(printed.getvalue())
        meteor = program.Meteor()  # only now: two at once would take longer than one after the other
        patch.setattr(program, "Meteor", lambda: meteor)
        patch.setattr(program, "Spice", _Tokens)
        coco = COCO(str(gold))
        theirs = program.COCOEvalCap(coco, coco.loadRes(str(said)))
        theirs.params["image_id"] = [*TOLD]
        theirs.evaluate()
    yield Scored({row["metric"]: row for row in answer["scores"]}, told[0], theirs, _Tokens.kept, meteor)


def test_scores_are_those_of_the_servers_program(scored: Scored) -> None:
    wanted = {NAMES.get(name, name): 100 * value for name, value in scored.program.eval.items() if name != "SPICE"}
    assert {metric: row["value"] for metric, row in scored.said.items() if metric != "SPICE"} == wanted
    assert list(scored.said) == THERE and 0 < wanted["BLEU@4"] < 60 and wanted["CIDEr"] > 100
    assert all(row["low"] < row["value"] < row["high"] for row in scored.said.values())
    assert {row["samples"] for row in scored.said.values()} == {len(TOLD)}


def test_each_picture_has_what_the_program_gives_it(scored: Scored) -> None:
    kept = {one.metric: one.series for one in scored.told.outcomes}
    assert list(kept) == [metric for metric in THERE if metric in MEANS]
    for theirs, ours in (("ROUGE_L", "ROUGE-L"), ("CIDEr", "CIDEr")):
        (series,) = kept[ours]
        assert series.names == series.groups == [*map(str, TOLD)]
        assert series.values == [scored.program.imgToEval[image][theirs] for image in TOLD]


def test_intervals_of_scores_of_a_corpus_are_made_of_scores_of_resampled_corpora(scored: Scored) -> None:
    from pycocoevalcap.bleu.bleu import Bleu

    def by_program(pictures: list[int]) -> list[float]:
        said, found = ({at: of[[*TOLD][picture]] for at, picture in enumerate(pictures)} for of in scored.tokens)
        return [*Bleu(4).compute_score(said, found, verbose=0)[0], scored.meteor.compute_score(said, found)[0]]

    drawn = np.random.default_rng(0).integers(0, len(TOLD), (2000, len(TOLD))).tolist()
    sets = {frozenset(Counter(each).items()): each for each in drawn}
    scores = {which: by_program(each) for which, each in sets.items()}
    low, high = np.quantile([scores[frozenset(Counter(each).items())] for each in drawn], [0.025, 0.975], axis=0)
    corpus = [scored.said[metric] for metric in THERE if metric not in MEANS]
    assert [row["low"] for row in corpus] == pytest.approx(100 * low, rel=1e-12)
    assert [row["high"] for row in corpus] == pytest.approx(100 * high, rel=1e-12)
