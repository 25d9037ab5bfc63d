"""Files of predictions, scored by the command."""

import json
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def scores(capsys: pytest.CaptureFixture[str], task: str, predictions: Path, annotations: Path, *more: str) -> Any:
    words = ["score", task, "--predictions", str(predictions), "--annotations", str(annotations), "--json", *more]
    assert main(words) == 0
    return {row["metric"]: row for row in json.loads(capsys.readouterr().out)["scores"]}


def question(number: int, answers: list[str], kind: str = "other") -> dict[str, Any]:
    said = [{"answer": answer, "answer_id": place, "answer_confidence": "yes"} for place, answer in enumerate(answers)]
    return {
        "question_id": number, "image_id": number // 10, "question_type": "what", "answer_type": kind, "answers": said
    }  # fmt: skip


@pytest.fixture
def vqa(tmp_path: Path) -> Path:
    some = ["red"] * 6 + ["a red"] * 4
    asked = [question(10, some), question(11, ["2"] * 5 + ["two"] * 5, "number"), question(20, ["no"] * 10)]
    return write(tmp_path / "v2_annotations.json", {"info": {}, "annotations": asked, "data_type": "mscoco"})


def test_vqa_of_all_questions_and_by_type(tmp_path: Path, vqa: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = [
        {"question_id": 10, "answer": "Red."},
        {"question_id": 11, "answer": "two"},
        {"question_id": 20, "answer": "yes"},
    ]
    found = scores(capsys, "vqa", write(tmp_path / "results.json", said), vqa)
    assert found["accuracy"]["value"] == pytest.approx(100 * 2 / 3)
    assert found["accuracy"]["low"] <= found["accuracy"]["value"] <= found["accuracy"]["high"]
    assert found["accuracy number"]["value"] == 100
    assert found["accuracy other"]["value"] == 50
    assert found["accuracy"]["samples"] == 3


def test_questions_of_no_type_count_among_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    untyped = {**question(11, ["no"] * 10), "answer_type": None}
    gold = write(tmp_path / "gold.json", {"annotations": [question(10, ["red"] * 10), untyped]})
    said = write(tmp_path / "said.json", [{"question_id": number, "answer": "red"} for number in (10, 11)])
    found = scores(capsys, "vqa", said, gold)
    assert {metric: row["value"] for metric, row in found.items()} == {"accuracy": 50, "accuracy other": 100}


def refused(capsys: pytest.CaptureFixture[str], task: str, predictions: Path, annotations: Path, *more: str) -> str:
    words = ["score", task, "--predictions", str(predictions), "--annotations", str(annotations), *more]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize("ending", ["JSON", "JSONL", "Csv"])
def test_an_ending_is_read_in_either_case(
    ending: str, tmp_path: Path, vqa: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = [{"question_id": number, "answer": "red"} for number in (10, 11, 20)]
    path = tmp_path / f"results.{ending}"
    if ending == "Csv":
        path.write_text("".join(f"{row['question_id']},red\n" for row in said))
    else:
        (write if ending == "JSON" else lines)(path, said)  # type: ignore[operator]
    assert scores(capsys, "vqa", path, vqa)["accuracy"]["samples"] == 3


def test_predictions_that_do_not_fit_are_named(tmp_path: Path, vqa: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = [{"question_id": 10, "answer": "red"}]
    missing = write(tmp_path / "missing.json", some)
    assert "no prediction for 2 of 3 ids: 11, 20" in refused(capsys, "vqa", missing, vqa)
    assert scores(capsys, "vqa", missing, vqa, "--subset")["accuracy"]["samples"] == 1
    unknown = write(tmp_path / "unknown.json", [*some, {"question_id": 99, "answer": "x"}])
    assert "1 predictions for ids that the annotations do not have: 99" in refused(capsys, "vqa", unknown, vqa)
    twice = write(tmp_path / "twice.json", some * 2)
    assert "stand there twice: 10" in refused(capsys, "vqa", twice, vqa)
    odd = write(tmp_path / "odd.json", [{"question_id": 10, "answer": 3}])
    assert "entry 0 is not a prediction" in refused(capsys, "vqa", odd, vqa)
    nameless = write(tmp_path / "nameless.json", [{"question_id": None, "answer": "x"}])
    assert "entry 0 is not a prediction" in refused(capsys, "vqa", nameless, vqa)
    table = tmp_path / "results.tsv"
    table.write_text("10\tred\n")
    assert "ends in .tsv" in refused(capsys, "vqa", table, vqa)
    headed = tmp_path / "headed.csv"
    headed.write_text("question_id,answer\n10,red\n")
    assert scores(capsys, "vqa", headed, vqa, "--subset")["accuracy"]["samples"] == 1
    assert "holds no predictions" in refused(capsys, "vqa", write(tmp_path / "empty.json", []), vqa)
    assert "no array 'annotations'" in refused(capsys, "vqa", missing, write(tmp_path / "a.json", {"questions": [1]}))
    assert "not in the published format" in refused(
        capsys, "vqa", missing, write(tmp_path / "b.json", {"annotations": [{"question_id": 1}]})
    )
    bare = write(tmp_path / "bare.json", {"annotations": [question(10, [])]})
    assert "entry 0 is not in the published format, an object with question_id, image_id" in refused(
        capsys, "vqa", missing, bare
    )
    for broken in (question(10, [3, "3"]), question(10, ["red"], 7)):  # type: ignore[list-item, arg-type]
        odd = write(tmp_path / "odd_annotations.json", {"annotations": [broken]})
        assert "entry 0 is not in the published format" in refused(capsys, "vqa", missing, odd)
    assert "no such file" in refused(capsys, "vqa", tmp_path / "gone.json", vqa)


def test_nlvr2_by_example_and_by_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["dev-1-0-0", "dev-1-1-0", "dev-1-0-1", "dev-2-0-0"]
    labelled = lines(tmp_path / "dev.json", [{"identifier": name, "label": "True", "sentence": "x"} for name in names])
    said = tmp_path / "said.csv"
    said.write_text("dev-1-0-0,True\ndev-1-1-0,false\n\ndev-1-0-1,true\ndev-2-0-0,True\n")
    found = scores(capsys, "nlvr2", said, labelled)
    assert found["accuracy"]["value"] == 75
    assert found["consistency"]["value"] == pytest.approx(100 * 2 / 3)
    said.write_text("dev-1-0-0,True\ndev-1-0-1,true\n")
    part = scores(capsys, "nlvr2", said, labelled, "--subset")
    assert part["accuracy"]["samples"] == 2
    assert part["consistency"]["samples"] == 1, "the other sentence's second pair is not predicted"
    said.write_text("dev-1-0-0,True\n")
    assert set(scores(capsys, "nlvr2", said, labelled, "--subset")) == {"accuracy"}
    said.write_text("dev-1-0-0,True,1\n")
    assert "line 1 has 3 columns" in refused(capsys, "nlvr2", said, labelled)
    said.write_text("dev-1-0-0,True\ndev-1-1-0,1\ndev-1-0-1,0\ndev-2-0-0,True\n")
    odd = refused(capsys, "nlvr2", said, labelled)
    said.write_text("dev-1-0-0,True\n")
    listed = write(tmp_path / "albef.json", {"images": ["l", "r"], "sentence": "x", "label": "True"})
    assert "with label and an identifier split-set-pair-sentence; give" in refused(capsys, "nlvr2", said, listed)
    assert "2 predictions are none of true, false, the first is '1' of dev-1-1-0" in odd


def test_annotations_that_say_two_things_or_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = write(tmp_path / "vqa.json", [{"question_id": 10, "answer": "red"}])
    twice = write(tmp_path / "twice.json", {"annotations": [question(10, ["red"]), question(10, ["blue"])]})
    assert "1 of question_id stand there twice: 10; give" in refused(capsys, "vqa", said, twice)
    pair = {"pairID": "a", "gold_label": "neutral", "Flickr30K_ID": 7}
    relations = lines(tmp_path / "dev.jsonl", [pair, {**pair, "gold_label": "entailment"}])
    said = lines(tmp_path / "said.jsonl", [{"pairID": "a", "prediction": "neutral"}])
    assert "1 of pairID stand there twice: a" in refused(capsys, "snli_ve", said, relations)
    (said := tmp_path / "said.csv").write_text("dev-1-0-0,True\n")
    example = {"identifier": "dev-1-0-0", "label": "True"}
    assert "1 of identifier stand" in refused(capsys, "nlvr2", said, lines(tmp_path / "x.json", [example] * 2))
    odd = lines(tmp_path / "odd.json", [{**example, "label": "X"}])
    assert "1 labels are none of true, false, the first is 'X' of dev-1-0-0" in refused(capsys, "nlvr2", said, odd)
    told = write(tmp_path / "told.json", [{"image_id": 1, "caption": "a dog"}])
    none = write(tmp_path / "none.json", {"annotations": [{"image_id": 1, "caption": None}]})
    assert "entry 0 is not in the published format, an object with image_id and a text caption" in refused(
        capsys, "captions", told, none
    )


def test_a_table_of_excels_begins_with_a_mark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labelled = lines(tmp_path / "dev.json", [{"identifier": "dev-1-0-0", "label": "True"}])
    said = tmp_path / "said.csv"
    for head in ("", "identifier,prediction\n"):
        said.write_text(f"{head}dev-1-0-0,True\n", encoding="utf-8-sig")
        assert scores(capsys, "nlvr2", said, labelled)["accuracy"]["value"] == 100


def test_snli_ve_leaves_out_pairs_without_a_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("a", "entailment"), ("b", "neutral"), ("c", "-")]
    gold = lines(tmp_path / "dev.jsonl", [{"pairID": n, "gold_label": g, "Flickr30K_ID": 7} for n, g in rows])
    for names in ("ab", "abc"):
        said = lines(tmp_path / "said.jsonl", [{"pairID": n, "prediction": "entailment"} for n in names])
        assert scores(capsys, "snli_ve", said, gold)["accuracy"] == {
            "metric": "accuracy", "value": 50, "low": 50, "high": 50, "samples": 2
        }  # fmt: skip
    odd = lines(tmp_path / "odd.jsonl", [{"pairID": "a", "gold_label": "entail", "Flickr30K_ID": 7}])
    assert main(["score", "snli_ve", "--predictions", str(said), "--annotations", str(odd)]) == 2
    assert "gold_label 'entail' of pair a is none of entailment, neutral, contradiction, nor '-'" in (
        capsys.readouterr().err
    )
