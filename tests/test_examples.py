"""The scripts of examples/, as their readers run them."""

import os
import re
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
    judged = re.findall(r"said (?:true|false) \(0\.\d\d\) for (\S+)x less", said)
    assert len(judged) == 4 and all(float(times) > 1.2 for times in judged)
