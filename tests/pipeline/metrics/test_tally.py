"""What models said, collected batch by batch."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.errors import UserError
from pipeline.data.batch import ImageTextBatch
from pipeline.data.sample import Sample
from pipeline.metrics.tally import (
    TALLIES,
    SnliVeTally,
    StatementTally,
    VqaTally,
    check_metric,
    check_programs,
    lacking_in,
)
from pipeline.tasks.classes import SNLI_VE, STATEMENT, TASKS, classes_of
from tests.pipeline.small import small_batch

ANSWERS = classes_of("vqa", ("yes", "no", "2"))


def batch_of(
    told: list[dict[str, Any]], labels: list[int], groups: list[str], clusters: list[str], seed: int = 0
) -> ImageTextBatch:
    ids = [f"picture{number // 2}" for number in range(len(told))]
    return replace(
        small_batch(len(told), seed), told=told, ids=ids, labels=torch.tensor(labels), groups=groups, clusters=clusters
    )


def test_every_task_has_a_tally() -> None:
    assert {*TALLIES, "captioning", "retrieval"} == set(TASKS)  # of which texts are scored, and ranks


def test_an_example_is_consistent_where_each_of_its_pictures_is_judged_rightly() -> None:
    tally = StatementTally()
    for seed, (said, groups) in enumerate([([1, 0, 1], ["a", "a", "b"]), ([1, 1, 0], ["b", "c", "c"])]):
        tally.add(batch_of([{}] * 3, [1, 0, 0], groups, ["one"] * 3, seed), said, STATEMENT.names)
    scores = {score.metric: score.value for score in tally.scores()}
    # Right: a a -, b - c: of the examples a alone; c has a wrong one, and so has b.
    assert scores == {"accuracy": pytest.approx(100 * 4 / 6), "consistency": pytest.approx(100 / 3)}


def test_one_example_a_presentation_has_a_consistency_and_twins_have_none() -> None:
    told, twins = StatementTally(), StatementTally()
    told.add(
        batch_of([{}] * 4, [1, 0, 0, 1], ["1-0", "1-0", "2-0", "2-0"], ["1", "1", "2", "2"]), [1, 0, 0, 0], ("", "")
    )
    assert [(score.metric, score.value) for score in told.scores()] == [("accuracy", 75), ("consistency", 50)]
    twins.add(batch_of([{}] * 4, [1, 0, 0, 1], ["a", "a", "b", "b"], ["a", "a", "b", "b"]), [1, 0, 0, 0], ("", ""))
    assert [score.metric for score in twins.scores()] == ["accuracy"]


def test_relations_are_scored_and_written(tmp_path: Path) -> None:
    tally = SnliVeTally()
    tally.add(batch_of([{"pair_id": "x#0"}, {"pair_id": "x#1"}], [0, 2], ["x", "x"], ["x", "x"]), [0, 1], SNLI_VE.names)
    assert [(score.metric, score.value, score.samples) for score in tally.scores()] == [("accuracy", 50, 2)]
    tally.write(tmp_path / "said.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert lines == [{"pairID": "x#0", "prediction": "entailment"}, {"pairID": "x#1", "prediction": "neutral"}]


def test_relations_without_ids_have_an_accuracy_and_no_result_file() -> None:
    """ALBEF's lists have none, and a run had failed on them after all of its training."""
    tally, told = SnliVeTally(), [{"pair_id": "x#0"}, {}, {"pair_id": None}]
    tally.add(batch_of(told, [0, 2, 1], ["x"] * 3, ["p", "p", "q"]), [0, 1, 1], SNLI_VE.names)
    assert [(one.metric, one.value, one.samples) for one in tally.scores()] == [("accuracy", pytest.approx(200 / 3), 3)]
    assert tally.lacking is not None and "2 of 3 relations, k0-1 the first, have no pair_id" in tally.lacking
    samples = [
        Sample(key=f"s{n}", images={}, fields={"statements": [{"relation": "neutral", **told[n]}]}) for n in range(2)
    ]
    assert lacking_in("snli_ve", samples[:1]) is None and lacking_in("statement", samples) is None
    assert str(lacking_in("snli_ve", samples)).startswith("s1 has no pair_id")


def test_answers_are_scored_by_the_servers_rules_and_their_ids_stay_numbers(tmp_path: Path) -> None:
    tally = VqaTally()
    told = [
        {"question_id": 7, "answers": ["yes"] * 10, "answer_type": "yes/no"},
        {"question_id": 8, "answers": ["one"] * 8 + ["2", "Two"], "answer_type": "number"},
        {"question_id": 9},
    ]
    tally.add(batch_of(told, [-1] * 3, ["x"] * 3, ["x"] * 3), [0, 2, 1], ANSWERS.names)
    scores = {score.metric: score.value for score in tally.scores()}
    # Two annotators say it once all are normalised, for they differ. Eight leave out another's answer and find two
    # (2/3 each), two leave out their own and find one (1/3).
    number = 100 * (8 * 2 / 3 + 2 * 1 / 3) / 10
    assert scores == {
        "accuracy": pytest.approx((100 + number) / 2),
        "accuracy number": pytest.approx(number),
        "accuracy yes/no": 100,
    }
    tally.write(tmp_path / "results.json")
    rows = json.loads((tmp_path / "results.json").read_text())
    assert rows == [{"question_id": 7 + row, "answer": said} for row, said in enumerate(("yes", "2", "no"))]


def test_answers_of_no_type_are_scored_with_all_alone() -> None:
    tally, told = VqaTally(), [{"question_id": n, "answers": [2] * 10} for n in range(2)]
    told[0]["answer_type"] = "number"
    tally.add(batch_of(told, [-1] * 2, ["x"] * 2, ["x"] * 2), [2, 0], ANSWERS.names)
    assert {score.metric: score.value for score in tally.scores()} == {"accuracy": 50, "accuracy number": 100}


def test_an_instance_without_an_id_is_refused() -> None:
    with pytest.raises(UserError, match="k0-0: 'k0-0' has no question_id"):
        VqaTally().add(batch_of([{}], [-1], ["x"], ["x"]), [0], ANSWERS.names)
    with pytest.raises(UserError, match="pair_id 'p' stands twice"):
        SnliVeTally().add(batch_of([{"pair_id": "p"}] * 2, [0, 0], ["x", "x"], ["x", "x"]), [0, 0], SNLI_VE.names)


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        ("statement", "consistency"), ("snli_ve", "accuracy"), ("nlvr2", "accuracy"), ("nlvr2", "consistency"),
        ("vqa", "accuracy"), ("vqa", "accuracy yes/no"), ("vqa_generative", "accuracy number"), ("captioning", "CIDEr"),
        ("captioning", "word_accuracy"), ("retrieval", "mean_recall"), ("retrieval", "TR R@1"),
    ],
)  # fmt: skip
def test_metrics_of_a_task_are_known(task: str, metric: str) -> None:
    check_metric(task, metric)


def test_scores_of_captions_are_refused_where_their_programs_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"metric=CIDEr: caption metrics need .*: .*install.*; or take word_accuracy"):
        check_programs("CIDEr")
    check_programs("word_accuracy")
    check_programs("accuracy")


@pytest.mark.parametrize(
    ("task", "metric", "known"),
    [
        ("nlvr2", "recall", "accuracy, consistency"), ("nlvr2", "accuracyx", "accuracy, consistency"),
        ("nlvr2", "accuracy yes/no", "accuracy, consistency"), ("snli_ve", "consistency", "accuracy"),
        ("vqa", "accuracyx", "accuracy, 'accuracy KIND'"),
        ("retrieval", "accuracy", "TR R@1, TR R@5, TR R@10, IR R@1, IR R@5, IR R@10, R@10, mean_recall"),
        (
            "captioning", "accuracy",
            "BLEU@1, BLEU@2, BLEU@3, BLEU@4, METEOR, ROUGE-L, CIDEr, SPICE, word_accuracy",
        ),
    ],
)  # fmt: skip
def test_others_are_refused_by_their_whole_name(task: str, metric: str, known: str) -> None:
    with pytest.raises(UserError) as caught:
        check_metric(task, metric)
    assert str(caught.value) == f"trim.validation.metric={metric} is no score of trim.task={task}: {known}"


def test_what_became_of_each_instance_is_known_by_name_and_group() -> None:
    statements = StatementTally()
    batch = replace(batch_of([{}] * 3, [1, 0, 0], ["a", "a", "b"], ["p", "p", "p"]), keys=["k0", "k0", "k1"])
    statements.add(batch, [1, 1, 0], STATEMENT.names)
    statements.add(replace(batch, keys=["k2", "k3", "k3"], groups=["b", "c", "c"]), [1, 0, 0], STATEMENT.names)
    accuracy, consistency = statements.outcomes()
    assert (accuracy.metric, consistency.metric) == ("accuracy", "consistency")
    (each,) = accuracy.series
    assert dict(zip(each.names, each.values, strict=True)) == {
        "k0#0": 1, "k0#1": 0, "k1#0": 1, "k2#0": 1, "k3#0": 1, "k3#1": 1,
    }  # fmt: skip
    assert each.groups == ["p"] * 6  # the presentation, which is what intervals are resampled by
    (of_sentences,) = consistency.series
    assert dict(zip(of_sentences.names, of_sentences.values, strict=True)) == {"a": 0, "b": 1, "c": 1}
    answers = VqaTally()
    answers.add(batch_of([{"question_id": 7, "answers": ["yes"] * 10}], [-1], ["x"], ["x"]), [0], ANSWERS.names)
    (asked,) = answers.outcomes()[0].series
    assert (asked.names, asked.values, asked.groups) == (["7"], [1.0], ["picture0"])
