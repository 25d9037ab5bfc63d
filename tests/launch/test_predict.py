"""A trimmed model from its export folder: in Python, and as `trimline predict`."""

import io
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.errors import UserError
from launch.cli import main
from pipeline.checkpoint import export_weights
from pipeline.data.loader import LoaderConfig
from pipeline.data.text import Tokenizer, TokenizerConfig
from pipeline.data.transforms import TransformConfig, eval_image, normalise
from pipeline.models.build import build_model
from pipeline.setup import export_config
from pipeline.tasks.classes import TaskName, classes_of
from pipeline.tasks.classification import ClassificationModel
from pipeline.trimmed_model import TrimmedModel
from pipeline.trimming.smarttrim import MaskedTrimming
from pipeline.trimming.trimmers import TrimmerConfig
from tests.pipeline.evaluation.exports import caption_export
from tests.pipeline.small import small_config

TEXTS = ["there is a red circle", "a blue square is left of the big green star", "no"]
MIXED = TrimmerConfig(keep_bias=0.1, last_std=0.5)


@pytest.fixture(scope="module", params=[MIXED, None], ids=["trimmed", "full"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer.train(TEXTS, TokenizerConfig(vocab_size=100))
    config = small_config()
    config = replace(config, text=replace(config.text, vocab_size=tokenizer.vocab_size))
    torch.manual_seed(0)
    model = ClassificationModel(build_model(config), request.param)
    loader = LoaderConfig(
        height=config.vision.height, width=config.vision.width_px, max_tokens=config.text.max_positions
    )
    trimmers = None if request.param is None else asdict(request.param)
    described = export_config("statement", config, loader, target=2.0, trimmers=trimmers)
    out = tmp_path_factory.mktemp("export") / "export"
    export_weights(out, model.state_dict(), json.loads(json.dumps(described)), tokenizer)
    return out


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_instances_are_judged_alike_alone_together_and_masked(folder: Path) -> None:
    model = TrimmedModel.from_pretrained(folder)
    pictures = [picture(seed) for seed in range(3)]
    together = model.predict(pictures, TEXTS, batch_size=2)
    for said, image, text in zip(together, pictures, TEXTS, strict=True):
        (alone,) = model.predict([image], [text])
        assert alone.probability == pytest.approx(said.probability, rel=1e-4)
        assert (alone.gmacs, alone.kept) == (said.gmacs, pytest.approx(said.kept))
        assert (said.gmacs < said.full_gmacs) == bool(said.kept)
        ids, mask = model.tokenizer.encode([text], model.max_tokens)
        pixels = torch.from_numpy(eval_image(image, model.transform).copy()).permute(2, 0, 1)[None]
        inputs = normalise(pixels, model.transform.mean, model.transform.std), ids, mask
        masked = [] if model.model.trimmers is None else [MaskedTrimming(model.model.trimmers)]
        scores = model.model.classify(*inputs, masked).softmax(-1)
        assert said.probability == pytest.approx(scores[0, 1].item(), rel=1e-4)
    one = model.predict([pictures[0]], TEXTS)
    assert one[0].probability == pytest.approx(together[0].probability, rel=1e-4) and len(one) == 3


@pytest.mark.parametrize(("task", "asks"), [("vqa", True), ("statement", False)])
def test_questions_are_cleaned_as_questions(task: TaskName, asks: bool) -> None:
    tokenizer = Tokenizer.train(TEXTS, TokenizerConfig(vocab_size=100, clean="blip"))
    model = ClassificationModel(build_model(small_config()), None, classes=classes_of(task, ["yes", "no"]))
    made = TrimmedModel(model, tokenizer, TransformConfig(height=32, width=32), 9)
    assert (made.tokenizer.question, made.tokenizer.cleaning, tokenizer.question) == (asks, "blip", False)


def test_the_command_says_what_the_class_says(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.png").write_bytes(picture(0))
    words = [word for text in TEXTS for word in ("--text", text)]
    given = ["predict", str(folder), "--image", str(tmp_path / "one.png"), *words]
    assert main([*given, "--device", "cpu", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    wanted = TrimmedModel.from_pretrained(folder).predict([picture(0)], TEXTS)
    assert [row["text"] for row in answer["predictions"]] == TEXTS
    assert [row["probability"] for row in answer["predictions"]] == [said.probability for said in wanted]
    assert main([*given, "--device", "cpu"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 3 + len(TEXTS) and "texts are longer" in table[-1]
    assert table[2].startswith("one.png  there is a red circle")


def test_words_that_nothing_stands_for_are_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.png").write_bytes(picture(0))
    texts = ["--text", "a red zebra", "--text", "there is a circle", "--text", "a Zebra, a fox, a brad"]
    given = ["predict", str(folder), "--image", str(tmp_path / "one.png"), *texts, "--device", "cpu"]
    assert main([*given, "--json"]) == 0
    told = [row["unknown"] for row in json.loads(capsys.readouterr().out)["predictions"]]
    assert told == [["zebra"], [], ["zebra", "fox"]]  # the letters of `brad` are there, z and x are not
    assert main(given) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "the tokenizer does not know, and reads as [UNK]: zebra, fox"


def test_mistakes_are_told_in_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.png").write_bytes(picture(0)[:60])
    (tmp_path / "one.png").write_bytes(picture(0))
    text = ["--text", "a", "--text", "b"]
    export_weights(tmp_path / "bare", {}, {"kind": "statement"})
    export_weights(tmp_path / "begun", {}, {"kind": "backbone"})
    cases = {
        "No such file": [str(folder), "--image", str(tmp_path / "none.png"), *text],
        "give a picture file": [str(folder), "--image", str(tmp_path / "broken.png"), *text],
        "3 pictures and 2 texts": [str(folder), *(["--image", str(tmp_path / "one.png")] * 3), *text],
        "has no model.safetensors": [str(tmp_path), "--image", str(tmp_path / "one.png"), *text],
        "a fine-tuned model is wanted (stages/trim-.../export of the same run)": [
            str(tmp_path / "begun"),
            "--image",
            str(tmp_path / "one.png"),
            *text,
        ],
        "does not tell the sizes": [str(tmp_path / "bare"), "--image", str(tmp_path / "one.png"), *text],
    }
    for said, words in cases.items():
        assert main(["predict", *words, "--device", "cpu"]) == 2
        told = capsys.readouterr().err
        assert said in told and told.count("\n") == 1, told


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", "[]", "config.json is no JSON object; copy or export the folder again"),
        ("config.json", '{"kind": "state', "config.json does not hold valid JSON"),
        (
            "config.json",
            '{"kind": "vqa_generative"}',
            "config.json does not say 'candidates'; copy or export the folder again",
        ),
        ("tokenizer.json", '{"version": "1.0", "trunc', "tokenizer.json is no tokenizer"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json is no JSON object; copy or export the folder again"),
    ],
)
def test_a_damaged_export_is_told_in_one_line(
    name: str, content: str, said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "export")
    (tmp_path / "export" / name).write_text(content)
    (tmp_path / "one.png").write_bytes(picture(0))
    words = [str(tmp_path / "export"), "--image", str(tmp_path / "one.png"), "--text", "a", "--device", "cpu"]
    assert main(["predict", *words]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1, told


def test_a_text_that_is_cut_is_told_and_one_without_words_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.png").write_bytes(picture(0))
    given = ["predict", str(folder), "--image", str(tmp_path / "one.png"), "--device", "cpu"]
    long = " ".join(["red"] * 60)
    assert main([*given, "--text", TEXTS[0], "--text", long, "--json"]) == 0
    assert [row["cut"] for row in json.loads(capsys.readouterr().out)["predictions"]] == [False, True]
    assert main([*given, "--text", TEXTS[0], "--text", long]) == 0
    table = capsys.readouterr().out
    assert "1 of 2 texts are longer: the model reads" in table
    assert f"  {' '.join(['red'] * 19)} ...  " in table  # room for 80 characters
    assert main([*given, "--text", TEXTS[0]]) == 0
    assert "longer" not in capsys.readouterr().out
    for blank in ("", " ", "?!"):
        assert main([*given, "--text", blank]) == 2
        assert f"the text {blank!r} has no word that the model reads" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_told_in_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "one.png").write_bytes(picture(0))
    words = ["--image", str(tmp_path / "one.png"), "--text", "a", "--device", "cuda"]
    assert main(["predict", str(folder), *words]) == 2
    told = capsys.readouterr().err
    assert "--device cuda: this machine has no GPU" in told and told.count("\n") == 1


def test_an_export_without_a_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(UserError, match="tokenizer"):
        TrimmedModel.from_pretrained(tmp_path)


def test_a_captioner_is_refused_with_the_class_that_serves_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds a captioner, .* pipeline\.captioner\.Captioner"):
        TrimmedModel.from_pretrained(caption_export(tmp_path / "export"))
