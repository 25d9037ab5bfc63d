"""ALBEF's weights that were fine-tuned for retrieval: other names of the text encoder, and no head for words."""

from pathlib import Path

import pytest
import torch

from data_prep.errors import UserError
from data_prep.files import read_json
from pipeline.weights.albef import ALBEF
from pipeline.weights.folders import import_weights, load_model
from pipeline.weights.loaded import Hints
from pipeline.weights.mapping import export_tensors
from tests.pipeline.small import small_model

HINTS = Hints(vision_heads=4, text_heads=4)


def test_weights_of_retrieval_are_imported_without_a_head_for_words(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = small_model("albef")
    official = export_tensors(model.state_dict(), ALBEF).tensors
    words = {name for name in official if name.startswith("text_encoder.cls.")}
    stored = {name.replace("bert.", ""): each for name, each in official.items() if name not in words}
    copies = {name.replace("text_encoder.", "text_encoder_m."): each for name, each in stored.items()}
    beside = {"idx_queue": torch.zeros(1, 4), "ptr_queue": torch.zeros(1, dtype=torch.int64)}
    stored |= {name: each for name, each in copies.items() if "_m." in name} | beside
    torch.save({"model": stored}, tmp_path / "w.pth")
    done = import_weights(tmp_path / "w.pth", "albef", tmp_path / "in", HINTS)
    assert done.lacking == ("text_encoder.cls",) and {"idx_queue", "ptr_queue"} <= set(done.dropped)
    assert read_json(tmp_path / "in/config.json")["lacking"] == ["text_encoder.cls"]
    own, read = model.state_dict(), load_model(tmp_path / "in").model.state_dict()
    # The word head's decoder is the embedding itself.
    same = [name for name in own if not name.startswith("text_encoder.cls.") or "decoder.weight" in name]
    assert all(torch.equal(read[name], own[name]) for name in same) and len(same) < len(own)

    part = {name: each for name, each in official.items() if ".transform.dense." not in name}
    torch.save({"model": part}, tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"2 missing \(text_encoder\.cls\.predictions\.transform"):
        import_weights(tmp_path / "part.pth", "albef", tmp_path / "part", HINTS)
