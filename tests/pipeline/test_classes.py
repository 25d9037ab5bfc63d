"""What is right of an instance, by task: soft scores, answer lists, losses, divergences."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributions import Bernoulli, kl_divergence

from data_prep.errors import UserError
from data_prep.shapes_published import write_published
from data_prep.sources import SourceConfig, prepare
from pipeline.data.batch import ImageTextBatch
from pipeline.data.decode import BadSample
from pipeline.data.questions import questions_of
from pipeline.data.sample import Sample
from pipeline.data.shards import ShardFolder
from pipeline.measure.survivors import Sight, overlay
from pipeline.models.schedule import CLS
from pipeline.objectives.answers import answer_loss
from pipeline.process import Process
from pipeline.tasks.answer_list import AnswersConfig, make_answers
from pipeline.tasks.classes import SNLI_VE, STATEMENT, classes_of, has_task, right_answer, soft_scores
from pipeline.trimming.methods import what_counts
from pipeline.trimming.target import Target
from tests.pipeline.small import small_batch


def questions(*answers: list[str]) -> ImageTextBatch:
    batch = small_batch(len(answers))
    batch.told.extend({"question": "what is it?", "answers": each} for each in answers)
    return batch


@pytest.mark.parametrize(
    ("answers", "wanted"),
    [
        (["red"], {"red": 0.3}),
        (["red"] * 2, {"red": 0.6}),
        (["red"] * 3, {"red": 0.9}),
        (["red"] * 4 + ["a Red."] * 6, {"red": 1.0, "a Red.": 1.0}),
        (["two", "2", "2"], {"two": 0.3, "2": 0.6}),
    ],
)
def test_soft_scores_count_answers_as_they_are_written(answers: list[str], wanted: dict[str, float]) -> None:
    assert soft_scores(answers) == wanted


def test_the_right_answer_is_the_class_that_the_data_names_or_what_most_annotators_said() -> None:
    vqa, asked = classes_of("vqa", ("red", "2")), questions(["blue", "teal", "blue"])
    assert right_answer(vqa, asked, 0) == "blue" and right_answer(vqa, small_batch(1), 0) == ""
    batch = replace(small_batch(3), labels=torch.tensor([1, 2, -1]))
    assert [right_answer(SNLI_VE, batch, row) for row in range(3)] == [*SNLI_VE.names[1:], ""]
    assert [right_answer(STATEMENT, batch, row) for row in (0, 2)] == ["true", ""]
    sights = [Sight("vision", 2, torch.arange(5).sub(1).expand(3, 5), None)]
    shown = overlay(batch, 0, (2, 2), sights, right_answer(STATEMENT, batch, 0))
    assert (shown["label"], shown["steps"][0]["name"], shown["steps"][0]["layer"]) == ("true", "vision layer 2", 2)
    assert (shown["steps"][0]["kept"], shown["steps"][0]["merged"]) == ([0, 1, 2, 3], 0)


def test_merged_tokens_are_counted_where_they_are_there() -> None:
    origin_BN = torch.tensor([[CLS, 2, -2, -3], [CLS, 0, 1, -4]])
    present_BN = torch.tensor([[True, True, True, False], [True, True, True, True]])
    for present, wanted in ((None, [2, 1]), (present_BN, [1, 1])):
        sights = [Sight("vision", 2, origin_BN, present)]
        shown = [overlay(small_batch(2), row, (2, 2), sights) for row in range(2)]
        assert [each["steps"][0]["merged"] for each in shown] == wanted


def test_targets_have_the_scores_of_listed_answers_alone() -> None:
    classes = classes_of("vqa", ("red", "2", "no"))
    targets_BA = classes.targets(questions(["red "] * 2 + ["2"] * 7 + ["two"], ["blue"] * 10, ["No", "no", "nope"]))
    wanted = [[0.6, 1.0, 0], [0, 0, 0], [0, 0, 0.3]]
    torch.testing.assert_close(targets_BA, torch.tensor(wanted))


def test_a_question_without_a_listed_answer_teaches_nothing() -> None:
    """METER's reference leaves such questions out of training."""
    classes = classes_of("vqa", ("red", "2", "no"))
    scores_BA = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets_BA = torch.tensor([[0.6, 1.0, 0], [0, 0, 0]])
    loss = classes.loss(scores_BA, targets_BA)
    torch.testing.assert_close(loss, answer_loss(scores_BA[:1], targets_BA[:1]) / 2)
    loss.backward()
    assert scores_BA.grad is not None and scores_BA.grad[0].all() and not scores_BA.grad[1].any()


@pytest.mark.parametrize("asked", [5, "what is it?", {"answers": ["red"]}, {"question": 5}])
def test_a_question_without_a_text_is_a_bad_sample(asked: object) -> None:
    sample = Sample(key="k", images={}, fields={"captions": [], "questions": [asked]})
    with pytest.raises(BadSample, match="one without a text `question`"):
        sample.text("questions", 0)


def test_a_question_without_annotators_is_refused_where_one_learns_from_it() -> None:
    batch = small_batch(1)
    batch.told.append({"question": "what is it?"})
    with pytest.raises(UserError, match="k0-0: the question 'what is it\\?' has no `answers`"):
        classes_of("vqa", ("red", "2")).targets(batch)


def test_answers_lose_and_diverge_as_a_bernoulli_each_summed_over_answers() -> None:
    generator = torch.Generator().manual_seed(0)
    trimmed, full = (torch.randn(3, 5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    targets = torch.rand(3, 5, generator=generator, dtype=torch.float64)
    classes = classes_of("vqa", tuple("abcde"))
    each = -(targets * trimmed.sigmoid().log() + (1 - targets) * (1 - trimmed.sigmoid()).log())
    torch.testing.assert_close(classes.loss(trimmed, targets), each.sum(1).mean())
    wanted = kl_divergence(Bernoulli(logits=trimmed), Bernoulli(logits=full)).sum(1).mean()
    found = classes.divergence(trimmed, full)
    torch.testing.assert_close(found, wanted)
    found.backward()
    assert full.grad is None and trimmed.grad is not None
    assert float(classes.divergence(100 * trimmed.detach(), 100 * full.detach()).isfinite())
    best = torch.nn.functional.one_hot(trimmed.argmax(1), 5).double()
    torch.testing.assert_close(classes.own_loss(trimmed), 3 * answer_loss(trimmed, best))
    assert float(classes.accuracy(trimmed, targets)) == pytest.approx(
        sum(float(targets[row, trimmed[row].argmax()]) for row in range(3)) / 3
    )
    torch.testing.assert_close(classes.probabilities(trimmed), trimmed.sigmoid())


def test_classes_of_which_one_is_right_lose_by_softmax() -> None:
    scores, labels = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0]]), torch.tensor([0, 2])
    wanted = -(scores.log_softmax(1)[0, 0] + scores.log_softmax(1)[1, 2]) / 2
    torch.testing.assert_close(SNLI_VE.loss(scores, labels), wanted)
    assert float(SNLI_VE.accuracy(scores, labels)) == 0.5
    assert (SNLI_VE.names, STATEMENT.names) == (("entailment", "neutral", "contradiction"), ("false", "true"))


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("vqa")
    write_published("vqa", root / "raw", {"train": 80}, 32, 0)
    prepare(SourceConfig(name="vqa", root=str(root / "raw"), shard_samples=30), root / "shards", workers=1)
    return root / "shards" / "train"


def test_an_answer_list_holds_what_is_frequent_the_most_frequent_first(split: Path) -> None:
    folder = ShardFolder(split)
    told = [question for row in range(80) for question in folder.read(row).fields["questions"]]
    counts = Counter(question["answer"] for question in told)
    wanted = sorted((a for a, n in counts.items() if n >= 5), key=lambda answer: (-counts[answer], answer))
    assert make_answers([folder], AnswersConfig(at_least=5), Process()) == tuple(wanted)
    assert 2 < len(wanted) < len(counts)
    assert make_answers([folder, folder], AnswersConfig(at_least=10), Process()) == tuple(wanted)
    assert questions_of(folder, Process()).counts.sum() == len(told)
    with pytest.raises(UserError, match=r"0 of \d+ answers occur at least trim.answers.at_least=1000 times in .*train"):
        make_answers([folder], AnswersConfig(at_least=1000), Process())
    with pytest.raises(UserError, match="at_least"):
        AnswersConfig(at_least=0)


def test_the_answer_list_counts_for_stages_of_vqa_alone() -> None:
    given = {"answers": {"at_least": 9, "candidates": 128}, "method": "smarttrim"}
    ranked = what_counts({**given, "task": "vqa_generative"}, Target(1.0, "x"))
    assert ranked == {"task": "vqa_generative", "answers": given["answers"]}
    assert what_counts({**given, "task": "vqa"}, Target(1.0, "x")) == {"task": "vqa", "answers": {"at_least": 9}}
    assert what_counts({**given, "task": "snli_ve"}, Target(1.0, "x")) == {"task": "snli_ve"}


def test_pairs_that_shapes_draws_are_judged_as_nlvr2s_are(tmp_path: Path) -> None:
    few = {"train": 0, "val": 0, "test": 0, "unseen": 0, "pairs": 2}
    prepare(SourceConfig(name="shapes", image_size=32, sizes=few), tmp_path / "shapes", workers=1)
    write_published("nlvr2", tmp_path / "raw", {"dev": 2}, 32, 0)
    prepare(SourceConfig(name="nlvr2", root=str(tmp_path / "raw")), tmp_path / "nlvr2", workers=1)
    own, published = (ShardFolder(tmp_path / name).read(0) for name in ("shapes/pairs", "nlvr2/dev"))
    assert set(own.images) == set(published.images) and own.fields["statements"]
    assert has_task(published, "nlvr2") and has_task(own, "nlvr2")  # without identifiers there is an accuracy
    alone = replace(own, images={"": own.images["left"]})
    assert not has_task(alone, "nlvr2") and not has_task(replace(own, fields={"captions": []}), "nlvr2")
