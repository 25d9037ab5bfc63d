"""`trimline analyse`, but for `leak`: figures and numbers from run folders and exports; refusals."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from launch.cli import main
from launch.report.figures import Drawing
from pipeline.data.shards import ShardFolder

TINY = str(Path(__file__).parent / "tiny.yaml")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A whole run, and one of another seed that has pre-trained only."""
    place = tmp_path_factory.mktemp("runs")
    whole, begun = (str(place / str(seed)) for seed in (0, 1))
    assert main(["run", TINY, "--out", whole]) == 0
    assert main(["pretrain", TINY, "--out", begun, "--seed", "1"]) == 0
    return whole, begun


@pytest.fixture(scope="module")
def run(runs: tuple[str, str]) -> Path:
    """The whole run."""
    return Path(runs[0])


@pytest.mark.parametrize("what", ["similarity", "attention"])
def test_the_numbers_stand_in_json_table_and_figure(
    what: str, runs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    words = ["analyse", what, runs[0], "--samples", "8", "--out", str(tmp_path)]
    words += ["--against", runs[1]] if what == "attention" else []
    assert main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["layer"] for row in rows if row["part"] == "vision"} == {0, 1, 2, 3}
    assert all((row["samples"], row["pictures"], row["groups"]) == (8, 8, 4) for row in rows)
    with open(tmp_path / f"{what}-test.csv") as file:
        saved = list(csv.DictReader(file))
    assert [float(row["value"]) for row in saved] == [row["value"] for row in rows]
    said = ("model", "against", "split", "samples", "pictures", "groups")
    assert {tuple(map(row.get, said)) for row in saved} == {
        ("0", "1" if what == "attention" else None, "test", "8", "8", "4")
    }
    assert (tmp_path / f"{what}-test.svg").read_text().startswith("<svg")
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "split test, 8 pairs of 8 pictures in 4 groups"
    assert lines[1] == f"held out: {runs[0]} was not trained on this split"
    note = Drawing.load(tmp_path / f"{what}-test.svg").note
    assert "8 pairs of 8 pictures in 4 groups from test. Held out: 0 was not trained on this split." in note
    assert f"{rows[0]['value']:.3f} (" in "\n".join(lines)
    assert lines[-1].endswith("(in the place of older ones)")


def test_another_split_takes_no_figures_place(run: Path, tmp_path: Path) -> None:
    for split in ("test", "train", str(run / "data" / "test")):
        words = ["similarity", str(run), "--split", split, "--samples", "4", "--out", str(tmp_path)]
        assert main(["analyse", *words]) == 0
    names = {"similarity-test.svg", "similarity-train.svg", "similarity-data-test.svg"}
    assert {path.name for path in tmp_path.glob("*.svg")} == names
    titles = {Drawing.load(tmp_path / name).title for name in names}  # one report may show them all
    assert titles == {f"albef: similarity by layer, {split} (analysis, 4 pairs of 4 pictures in 2 groups)"
                      for split in ("test", "train", "data/test")}  # fmt: skip
    with open(tmp_path / "similarity-data-test.csv") as file:
        assert {row["split"] for row in csv.DictReader(file)} == {"data/test"}


def test_equal_towers_are_nothing_apart(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export = str(run / "stages" / "pretrain" / "export")
    words = ["--split", str(run / "data" / "test"), "--samples", "4", "--out", str(tmp_path)]
    assert main(["analyse", "attention", export, "--against", export, *words]) == 0
    said = capsys.readouterr().out
    assert "0.000 (0.000 to 0.000)" in said and "-0.000" not in said
    svg = (tmp_path / "attention-data-test.svg").read_text()
    assert "1e" not in "".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg))
    assert "0.001" in svg


def test_an_export_folder_is_looked_at_as_the_run_that_it_is_of(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    for folder in (run, run / "stages" / "pretrain" / "export"):
        capsys.readouterr()
        words = ["analyse", "similarity", str(folder), "--split", str(run / "data" / "test"), "--samples", "8"]
        assert main([*words, "--out", str(tmp_path), "--json"]) == 0
        told.append(json.loads(capsys.readouterr().out)["rows"])
    assert told[0] == told[1]


def test_a_fine_tuned_export_is_looked_into_untrimmed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--split", str(run / "data" / "test"), "--samples", "16", "--out", str(tmp_path), "--json"]
    told = {}
    for stage in ("pretrain", "trim-statement-1.0x", "trim-statement-2.0x"):
        capsys.readouterr()
        assert main(["analyse", "similarity", str(run / "stages" / stage / "export"), *words]) == 0
        told[stage] = json.loads(capsys.readouterr().out)
    shapes = [{(row["part"], row["layer"], row["metric"]) for row in each["rows"]} for each in told.values()]
    assert shapes[0] == shapes[1] == shapes[2] and all(each["held_out"] for each in told.values())
    values = [[row["value"] for row in each["rows"]] for each in told.values()]
    assert values[0] != values[1] != values[2]
    note = Drawing.load(tmp_path / "similarity-data-test.svg").note
    assert note.startswith(f"{run.name}/trim-statement-2.0x. ")


def test_fine_tuning_counts_where_a_fine_tuned_export_is_asked(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    words = ["--split", str(run / "data" / "train"), "--samples", "16", "--out", str(tmp_path), "--json"]
    assert main(["analyse", "similarity", str(run / "stages" / "trim-statement-1.0x" / "export"), *words]) == 0
    assert json.loads(capsys.readouterr().out)["held_out"] is False


def test_wrong_words_are_told_in_a_line(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    for words, wanted in (
        (["similarity", "/nowhere"], "is no run folder"),
        (["similarity", runs[0], "--split", "nowhere"], "has no split 'nowhere'"),
        (["similarity", runs[0], "--samples", "1"], "must be at least 2"),
        (["attention", runs[0], "--against", "/nowhere"], "is no run folder"),
        (["attention", runs[0], "--against", runs[0]], "is the run itself"),
        (["similarity", f"{runs[0]}/stages/pretrain/export"], "is a model without data"),
        (
            ["attention", f"{runs[0]}/stages/pretrain/export", "--split", f"{runs[0]}/data/test"],
            "does not say of weights that its vision tower began from",
        ),
    ):
        capsys.readouterr()
        assert main(["analyse", *words]) == 2
        said = capsys.readouterr().err
        assert wanted in said and len(said.splitlines()) == 1


def test_a_tower_is_held_against_weights_as_against_the_run_that_has_them(
    runs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The vision-only model of the figure is a file, such as the one that pre-training began from."""
    export = Path(runs[1]) / "stages" / "pretrain" / "export"
    told = []
    for against in (runs[1], str(export)):
        capsys.readouterr()
        words = ["analyse", "attention", runs[0], "--against", against, "--samples", "8", "--out", str(tmp_path)]
        assert main([*words, "--json"]) == 0
        told.append(json.loads(capsys.readouterr().out)["rows"])
    assert told[0] == told[1]
    begun = str(tmp_path / "begun")
    assert main(["pretrain", TINY, "--out", begun, f"--pretrain.init.vision={export}"]) == 0
    capsys.readouterr()
    assert main(["analyse", "attention", begun, "--samples", "8", "--json"]) == 0
    own = json.loads(capsys.readouterr().out)["rows"]
    assert {row["layer"] for row in own} == {0, 1, 2, 3} and all(row["value"] > 0 for row in own)
    drawing = Drawing.load(Path(begun) / "analyses" / "attention-test.svg")
    assert "Not known whether begun was trained on this split: its training began with weights" in drawing.note
    assert drawing.note.startswith("KL( begun ‖ 1/pretrain )")


def test_without_a_vision_only_model_there_is_nothing_to_hold_against(
    runs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("no weights")
    for more, wanted in (
        ([], "began from random weights, so there is nothing to compare with: give --against WEIGHTS_OR_RUN"),
        (["--against", str(tmp_path)], "give other"),
    ):
        capsys.readouterr()
        assert main(["analyse", "attention", runs[0], *more]) == 2
        said = capsys.readouterr().err
        assert wanted in said and len(said.splitlines()) == 1


def test_evaluation_leaves_what_the_trimming_analysis_finds(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["analyse", "trimming", str(run), "--samples", "1000", "--out", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["split"] == "test" and told["held_out"]
    full, trimmed = told["models"]
    assert (full["stage"], trimmed["stage"]) == ("trim-statement-1.0x", "trim-statement-2.0x")
    rows = {row["stage"]: row for row in json.loads((run / "results.json").read_text()) if row["metric"] == "accuracy"}
    assert trimmed["gmacs"]["mean"] == pytest.approx(rows[trimmed["stage"]]["gmacs"], rel=1e-4)
    assert sum(trimmed["modules"].values()) == pytest.approx(trimmed["gmacs"]["mean"], rel=1e-4)
    assert full["kept"] == {} and set(trimmed["kept"]) == {"vision", "text", "msa", "mca"}
    for path in (tmp_path / "instances").iterdir():
        own = run / "stages" / f"evaluate-{path.name.split('x-')[0]}x" / "instances" / path.name
        assert own.read_bytes() == path.read_bytes()
    for name in ("cost", "modules", "retention"):
        file = f"{name}-statement-test.csv"
        assert (tmp_path / file).read_bytes() == (run / "figures" / file).read_bytes()
        found = Drawing.load((tmp_path / file).with_suffix(".svg")).title, Drawing.load(run / "figures" / file).title
        assert [" (analysis, " in each for each in found] == [True, False] and " (evaluation, " in found[1]
    assert "Cheapest and dearest: 2.0x, test" in (run / "report.html").read_text()


def test_trimming_of_an_export_is_that_of_its_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export, data = str(run / "stages" / "trim-statement-2.0x" / "export"), ["--split", str(run / "data" / "test")]
    told = []
    for words in ([str(run)], [export, *data]):
        capsys.readouterr()
        assert main(["analyse", "trimming", *words, "--samples", "8", "--out", str(tmp_path), "--json"]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert told[1]["models"] == told[0]["models"][1:] and told[1]["held_out"]


def test_another_split_is_drawn_into_the_run_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["analyse", "trimming", str(run), "--split", "train", "--samples", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "split train, 8 statement instances" and lines[1].startswith("not held out")
    assert lines[2].split()[:2] == ["model", "mean"] and lines[4].startswith("1.0x") and "100%" not in lines[4]
    with (run / "analyses" / "cost-statement-train.csv").open() as file:
        assert sum(int(row["instances"]) for row in csv.DictReader(file)) == 16
    assert Drawing.load(run / "analyses" / "retention-statement-train.svg").title.startswith(
        "statement, train: what is"
    )


def test_what_has_nothing_to_trim_is_told_in_a_line(
    runs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, begun = runs
    for words, wanted in (
        (["trimming", begun], "has no fine-tuned model yet"),
        (["trimming", run, "--samples", "0"], "must be at least 1"),
        (["trimming", f"{run}/stages/trim-statement-2.0x/export"], "name a folder of indexed shards with --split"),
        (["trimming", f"{run}/stages/pretrain/export", "--split", f"{run}/data/test"], "it has backbone, wanted is"),
        (["trimming", run, "--split", "nowhere"], "has no split 'nowhere'"),
        (["flops", "albef_tiny", "albef_tiny", "--out", str(tmp_path)], "named twice"),
        (["flops", "albef_tiny", "--task", "caption", "--out", str(tmp_path)], "flops knows albef for retrieval, vqa"),
    ):
        capsys.readouterr()
        assert main(["analyse", *words]) == 2
        said = capsys.readouterr().err
        assert wanted in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(("stage", "model"), [("pretrain", "pretrain"), ("trim-statement-2.0x", "2.0x")])
def test_survivors_of_an_export_are_those_of_the_report(
    stage: str, model: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [told] = json.loads((run / "stages" / "survivors" / "survivors.json").read_text())
    wanted = [sentence for sentence in told["sentences"] if sentence["model"] == model]
    picture = tmp_path / "a.jpg"
    picture.write_bytes(bytes(ShardFolder(run / "data" / "test").read(0).image))
    texts = [f"--text={sentence['text']}" for sentence in wanted]
    words = [str(run / "stages" / stage / "export"), "--image", str(picture), *texts, "--out", str(tmp_path)]
    capsys.readouterr()
    assert main(["analyse", "survivors", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["survivors"]
    assert len(found) == len(wanted) == 3
    for sentence, of_report in zip(found, wanted, strict=True):
        for key in ("steps", "text_steps"):
            kept = [{"name": step["name"], "kept": step["kept"]} for step in of_report[key]]
            assert sentence[key] == kept
    name = f"survivors-{run.name}-{stage}"
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / f"{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["picture"] for row in rows} == {"a.jpg"} and {row["model"] for row in rows} == {f"{run.name}/{stage}"}
    last = wanted[0]["steps"][-1]
    own = [
        row for row in rows if (row["sentence"], row["layer"]) == (wanted[0]["text"], last["name"]) and not row["word"]
    ]
    assert [4 * int(row["patch_row"]) + int(row["patch_column"]) for row in own if row["kept"] == "1"] == last["kept"]
    assert len(own) == 16 and {row["word"] for row in rows if row["word"]} == {
        word for sentence in wanted if sentence["text_steps"] for word in sentence["tokens"]
    }


def test_that_sentences_keep_the_same_patches_is_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (32, 32), "red").save(picture)
    export = str(run / "stages" / "pretrain" / "export")
    words = ["analyse", "survivors", export, "--image", str(picture), "--out", str(tmp_path), "--text", "a red circle"]
    for more, said in ((["--text", "a red circle"], True), ([], False)):
        capsys.readouterr()
        assert main([*words, *more]) == 0
        out = capsys.readouterr().out
        assert ("a.png: all 2 sentences keep the same patches, at every step" in out) == said


def test_survivors_are_refused_where_nothing_is_left_out(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    shutil.copytree(run / "stages" / "pretrain" / "export", tmp_path / "alone")
    for export, image, wanted in (
        (run, "a.png", "is no export"),
        (run / "stages" / "trim-statement-1.0x" / "export", "a.png", "holds an untrimmed model"),
        (tmp_path / "alone", "a.png", "lies in no run"),
        (run / "stages" / "pretrain" / "export", "b.png", "give a picture file"),
    ):
        capsys.readouterr()
        words = [str(export), "--image", str(tmp_path / image), "--text", "a cross", "--out", str(tmp_path)]
        assert main(["analyse", "survivors", *words]) == 2
        said = capsys.readouterr().err
        assert wanted in said and len(said.splitlines()) == 1


def test_shares_of_modules_are_those_of_the_flops_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--task", "retrieval", "--text-length", "10"]
    models = ["albef_tiny", "clip_tiny"]
    assert main(["analyse", "flops", *models, *words, "--out", str(tmp_path)]) == 0
    assert "albef_tiny" in capsys.readouterr().out and (tmp_path / "flops-retrieval.svg").is_file()
    with (tmp_path / "flops-retrieval.csv").open() as file:
        rows = list(csv.DictReader(file))
    for model in models:
        assert main(["flops", "--model", model, *words, "--json"]) == 0
        gmacs = json.loads(capsys.readouterr().out)["gmacs"]
        own = {row["module"]: row for row in rows if row["model"] == model}
        assert float(own["vision"]["gmacs"]) == gmacs["vision"]
        assert float(own["vision"]["share"]) == pytest.approx(gmacs["vision"] / gmacs["total"])
        assert sum(float(row["share"]) for row in own.values()) == pytest.approx(1.0)
