"""The scripts of examples/, as their readers run them."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(script: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / script), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("guidance", ["query", pytest.param("stage", marks=pytest.mark.slow)])
def test_a_vit_of_timm_is_pruned_and_gets_its_weights_back(guidance: str) -> None:
    said = run("wrap_timm_vit.py", "--guidance", guidance)
    apart = re.search(r"largest difference to timm's tokens is (\S+)", said)
    assert apart is not None and float(apart[1]) < 1e-5
    # 36 patches and CLS; 32, 23 and 14 of them with CLS and a merged one.
    assert "tokens by layer: [37, 37, 34, 34, 25, 25, 25, 25, 25, 25, 16, 16]" in said
    stayed = re.search(r"stayed in the first picture: \[(.*)\]", said)
    assert stayed is not None and len(set(stayed[1].split(", "))) == 14
    assert "not among them: ['head.weight', 'head.bias']" in said


def test_shards_are_streamed_exactly() -> None:
    said = run("stream_shards.py")
    assert "'00000.tar', '00001.tar', '00002.tar', '00003.tar', 'index.json', 'samples.npy'" in said
    assert "stopped after 5 of 12 steps and resumed: the same" in said
    assert "two processes of 8 samples each: the same" in said


def test_a_blip_of_hugging_face_is_trimmed_to_its_target() -> None:
    said = run("trim_hf_blip.py")
    reached = re.search(r"2\.0x wanted, (\S+)x reached", said)
    assert reached is not None and float(reached[1]) == pytest.approx(2.0, rel=0.1)
    assert said.splitlines()[-1].endswith("expect answers at chance: raise --samples")
    judged = re.findall(r"said (?:true|false) \(0\.\d\d\) for (\S+)x less", said)
    assert len(judged) == 4 and all(float(times) > 1.2 for times in judged)


@pytest.mark.parametrize(
    ("script", "words", "wanted"),
    [
        ("wrap_timm_vit.py", "--name resnet50", "give a plain one such as vit_tiny_patch16_224"),
        ("wrap_timm_vit.py", "--name vit_nowhere", "timm knows no such model"),
        ("wrap_timm_vit.py", "--name vit_small_patch14_dinov2 --image-size 98", "has layer scale .* a plain ViT fits"),
        ("wrap_timm_vit.py", "--image-size 97", "multiple of vision.patch=16; try 96"),
        ("trim_hf_blip.py", "--samples 0", "samples=0 must be at least 1"),
        ("trim_hf_blip.py", "--target 500x", "the highest target is"),
        ("trim_hf_blip.py", "--target much", "'much' is no target"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(
    script: str, words: str, wanted: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script, *words.split()])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert len(said.splitlines()) == 1 and re.search(wanted, said), said
