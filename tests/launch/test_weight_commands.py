"""`trimline import` and `trimline export`: foreign files in, transformers' folders out, and what is refused."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers

from launch.cli import main
from launch.cli_weights import FOREIGN_KINDS
from pipeline.checkpoint import export_weights
from pipeline.exports import load_backbone
from pipeline.models.blip_tasks import BLIP_MODELS, BlipAnswering, BlipKind
from pipeline.models.build import build_model
from pipeline.weights.albef import ALBEF
from pipeline.weights.blip import BLIP
from pipeline.weights.folders import READERS, load_model
from pipeline.weights.mapping import export_tensors
from tests.pipeline.small import small_config, small_model
from tests.pipeline.weights.foreign_models import clip_config
from tests.pipeline.weights.test_clip import END, texts

HEADS = ("--vision-heads", "4", "--text-heads", "4")


def official(path: Path, kind: BlipKind | None) -> torch.nn.Module:
    """A small file as ALBEF's (None) or BLIP's authors would have stored it."""
    torch.manual_seed(0)
    model = small_model("albef") if kind is None else BLIP_MODELS[kind](small_config(backbone="blip"))
    tensors = export_tensors(model.state_dict(), ALBEF if kind is None else BLIP).tensors
    torch.save({"model": {**tensors, "image_queue": torch.zeros(16, 4)}, "epoch": 1}, path)
    return model.eval()


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, object]:
    assert main([str(word) for word in words] + ["--json"]) == 0
    result: dict[str, object] = json.loads(capsys.readouterr().out)
    return result


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert not captured.out
    return captured.err


def test_the_kinds_are_those_that_can_be_read() -> None:
    assert set(FOREIGN_KINDS) == set(READERS)


@pytest.mark.parametrize("kind", [None, "blip"])
def test_pretrained_weights_become_a_backbone(
    kind: BlipKind | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = official(tmp_path / "w.pth", kind)
    done = answer(capsys, "import", tmp_path / "w.pth", "--kind", kind or "albef", "--out", tmp_path / "in", *HEADS)
    assert done["kind"] == "backbone"
    assert done["left_out"] == ["image_queue"]
    read = load_backbone(tmp_path / "in")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in read.state_dict().items())


@pytest.mark.parametrize("kind", [kind for kind in BLIP_MODELS if kind != "blip_nlvr"])
def test_in_out_and_loaded_by_transformers(kind: BlipKind, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = official(tmp_path / "w.pth", kind)
    answer(capsys, "import", tmp_path / "w.pth", "--kind", "blip", "--out", tmp_path / "in", *HEADS)
    done = answer(capsys, "export", tmp_path / "in", "--format", "hf", "--out", tmp_path / "out")
    loader = getattr(transformers, str(done["class"]))
    there, told = loader.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told.values())
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        ours = model.encode_image(pixels).x  # type: ignore[operator]
        torch.testing.assert_close(there.eval().vision_model(pixels).last_hidden_state, ours, rtol=0, atol=1e-5)
    if kind != "blip":
        answer(capsys, "import", tmp_path / "out", "--kind", "blip-hf", "--out", tmp_path / "again")
        again, first = load_model(tmp_path / "again"), load_model(tmp_path / "in")
        assert again.kind == first.kind == kind
        wanted = {name: t for name, t in first.model.state_dict().items() if name != "temp"}
        assert all(torch.equal(again.model.state_dict()[name], tensor) for name, tensor in wanted.items())


def test_another_resolution(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    official(tmp_path / "w.pth", "blip_vqa")
    words = ("import", tmp_path / "w.pth", "--kind", "blip", "--out", tmp_path / "in", *HEADS)
    answer(capsys, *words, "--image-size", "48")
    loaded = load_model(tmp_path / "in")
    assert isinstance(loaded.model, BlipAnswering)
    assert loaded.model.encode_image(torch.zeros(1, 3, 48, 48)).x.shape[1] == 1 + 6 * 6


def test_a_wrong_file_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(name: str, kind: str = "blip", *more: str) -> str:
        return refusal(capsys, "import", tmp_path / name, "--kind", kind, "--out", tmp_path / "new", *more)

    official(tmp_path / "albef.pth", None)
    official(tmp_path / "blip.pth", "blip")
    tensors = torch.load(tmp_path / "blip.pth", weights_only=True)["model"]
    torch.save({**tensors, "visual_encoder.odd": torch.zeros(1)}, tmp_path / "odd.pth")
    torch.save({n: t for n, t in tensors.items() if n != "itm_head.bias"}, tmp_path / "short.pth")
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert "is missing" in refused("none.pth")
    assert "--vision-heads" in refused("blip.pth")
    assert "1 unknown (visual_encoder.odd)" in refused("odd.pth", "blip", *HEADS)
    assert "1 missing (itm_head.bias)" in refused("short.pth", "blip", *HEADS)
    assert "check --kind" in refused("x.safetensors")
    assert "check that --kind" in refused("albef.pth", "blip", *HEADS)
    assert "check --kind" in refused("blip.pth", "albef", *HEADS)
    assert "multiple of vision.heads=5" in refused("blip.pth", "blip", "--vision-heads", "5", "--text-heads", "4")
    assert "needs its folder" in refused("blip.pth", "blip-hf")
    assert not (tmp_path / "new").exists()


def test_nothing_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    for words in (("import", tmp_path, "--kind", "blip"), ("export", tmp_path, "--format", "hf")):
        assert "is there already" in refusal(capsys, *words, "--out", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_what_cannot_be_exported_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(folder: str) -> str:
        return refusal(capsys, "export", tmp_path / folder, "--format", "hf", "--out", tmp_path / "new")

    official(tmp_path / "w.pth", None)
    official(tmp_path / "pair.pth", "blip_nlvr")
    answer(capsys, "import", tmp_path / "w.pth", "--kind", "albef", "--out", tmp_path / "albef", *HEADS)
    answer(capsys, "import", tmp_path / "pair.pth", "--kind", "blip", "--out", tmp_path / "pair", *HEADS)
    export_weights(tmp_path / "statement", {}, {"kind": "statement"})
    export_weights(tmp_path / "sizes", {}, {"kind": "backbone", "model": {}})
    assert "has no model.safetensors" in refused("nowhere")
    assert "holds albef" in refused("albef")
    assert "no class for blip_nlvr" in refused("pair")
    assert "'statement' model" in refused("statement")
    assert "does not tell the sizes" in refused("sizes")


@torch.no_grad()
def test_a_clip_is_written_for_transformers_and_gives_the_same_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = clip_config()
    model = build_model(config).eval()
    described = {"kind": "backbone", "model": asdict(config), "tokens": {"pad": 1, "begin": 0, "end": END}}
    export_weights(tmp_path / "ours", model.state_dict(), described)
    done = answer(capsys, "export", tmp_path / "ours", "--format", "hf", "--out", tmp_path / "hf")
    assert (done["class"], done["left_out"]) == ("CLIPModel", [])
    theirs = transformers.CLIPModel.from_pretrained(tmp_path / "hf").eval()
    ids, mask = texts()
    pixels = torch.randn(3, 3, config.vision.height, config.vision.width_px)
    wanted = theirs(input_ids=ids, attention_mask=mask.long(), pixel_values=pixels)
    image, text = model.encode_image(pixels), model.encode_text(ids, mask)
    torch.testing.assert_close(model.image_feature(image), wanted.image_embeds, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.text_feature(text), wanted.text_embeds, rtol=1e-5, atol=1e-5)
    scores = model.image_feature(image) @ model.text_feature(text).T / model.temp
    torch.testing.assert_close(scores, wanted.logits_per_image, rtol=1e-4, atol=1e-4)


def test_a_clip_that_transformers_cannot_hold_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = clip_config()
    for name, changed, message in (
        ("end", config, '"tokens": {"end": ID}'),
        ("bias", replace(config, vision=replace(config.vision, patch_bias=True)), "vision.patch_bias=True"),
    ):
        described = {"kind": "backbone", "model": asdict(changed)}
        export_weights(tmp_path / name, build_model(changed).state_dict(), described)
        assert message in refusal(capsys, "export", tmp_path / name, "--format", "hf", "--out", tmp_path / "hf")
        assert not (tmp_path / "hf").exists()
