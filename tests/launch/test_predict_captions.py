"""A captioner of transformers, imported: `trimline predict` says what it says."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from launch.cli import main
from pipeline.captioner import Captioner
from pipeline.data.text import Tokenizer, TokenizerConfig
from pipeline.data.transforms import TransformConfig, eval_image, normalise
from pipeline.generation import PROMPT

TEXTS = ["a picture of two red circles", "a picture of a small blue square left of a star", "nothing to see here"]
SIDE = 32


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The model of transformers, our export of it, and the tokenizer."""
    place = tmp_path_factory.mktemp("captioner")
    tokenizer = Tokenizer.train(TEXTS, TokenizerConfig(vocab_size=100))
    tokenizer.save(place / "words")
    text = {
        "vocab_size": tokenizer.vocab_size + 2, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 24, "bos_token_id": tokenizer.vocab_size,
        "sep_token_id": tokenizer.sep_id, "pad_token_id": tokenizer.pad_id,
    }  # fmt: skip
    vision = {
        "hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": SIDE, "patch_size": 8, "layer_norm_eps": 1e-6,
    }  # fmt: skip
    torch.manual_seed(3)
    model = transformers.BlipForConditionalGeneration(
        transformers.BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=16)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(place / "theirs")
    words = ["--vision-heads", "2", "--text-heads", "4"]
    assert main(["import", str(place / "theirs"), "--kind", "blip-hf", "--out", str(place / "ours"), *words]) == 0
    return place / "theirs", place / "ours", place / "words"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("pictures")
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        (place / f"{seed}.png").write_bytes(buffer.getvalue())
    return sorted(place.iterdir())


def predict(folder: Path, pictures: list[Path], *words: str) -> int:
    images = [word for picture in pictures for word in ("--image", str(picture))]
    return main(["predict", str(folder), *images, *words])


@pytest.mark.parametrize("beams", [1, 3])
def test_captions_are_those_of_transformers(
    folders: tuple[Path, Path, Path], pictures: list[Path], beams: int, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, ours, words = folders
    capsys.readouterr()
    assert predict(ours, pictures, "--tokenizer", str(words), "--beams", str(beams), "--json") == 0
    said = [each["caption"] for each in json.loads(capsys.readouterr().out)["predictions"]]
    model = transformers.BlipForConditionalGeneration.from_pretrained(theirs).eval()
    transform = TransformConfig(height=SIDE, width=SIDE, resize="bicubic")
    read = [torch.from_numpy(eval_image(path.read_bytes(), transform).copy()).permute(2, 0, 1) for path in pictures]
    pixels = normalise(torch.stack(read), transform.mean, transform.std)
    tokenizer = Tokenizer.from_pretrained(words)
    ids, mask = tokenizer.encode([PROMPT], 20)
    prompt = ids[:, : int(mask.sum())].expand(len(pictures), -1)
    found = model.generate(pixel_values=pixels, input_ids=prompt, num_beams=beams, min_length=5, max_length=20)
    assert said == [tokenizer.text(row) for row in found[:, prompt.shape[1] - 1 :].tolist()]
    assert len(set(said)) > 1


def test_a_tokenizer_that_does_not_say_reads_a_captioners_texts_as_blip_does(
    folders: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    theirs = json.loads((folders[2] / "tokenizer_config.json").read_text())
    for key in ("clean", "max_words"):
        del theirs[key]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(theirs))
    (tmp_path / "tokenizer.json").write_bytes((folders[2] / "tokenizer.json").read_bytes())
    assert Captioner.from_pretrained(folders[1], tmp_path).tokenizer.cleaning == "blip"
    assert Captioner.from_pretrained(folders[1], folders[2]).tokenizer.cleaning == "albef"  # which says so


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--text", "a dog"], "leave out --text"),
        ([], "give the folder of a tokenizer"),
        (["--tokenizer", "WORDS", "--max-length", "4", "--min-length", "1"], "leaves no word behind 4 tokens"),
        (["--tokenizer", "WORDS", "--beams", "0"], "beams"),
        (["--tokenizer", "WORDS", "--min-length", "30"], "max_length=20 must be at least min_length=30"),
    ],
)
def test_wrong_words_are_told_in_a_line(
    folders: tuple[Path, Path, Path],
    pictures: list[Path],
    words: list[str],
    wanted: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [str(folders[2]) if word == "WORDS" else word for word in words]
    assert predict(folders[1], pictures, *given) == 2
    said = capsys.readouterr().err
    assert wanted in said
    assert len(said.splitlines()) == 1


def test_another_tokenizer_is_refused(
    folders: tuple[Path, Path, Path], pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Tokenizer.train([" ".join(map(str, range(1000)))], TokenizerConfig(max_words=1000)).save(tmp_path)
    assert predict(folders[1], pictures, "--tokenizer", str(tmp_path)) == 2
    assert "give the one it was trained with" in capsys.readouterr().err
