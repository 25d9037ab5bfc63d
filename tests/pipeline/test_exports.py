"""What is said of an export that cannot be read, and who may read one."""

import json
import stat
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from data_prep.errors import UserError
from pipeline.checkpoint import export_weights
from pipeline.exports import load_backbone, load_classification_model
from tests.pipeline.evaluation.exports import answering_export
from tests.pipeline.small import small_config, small_model


def test_an_export_of_another_version_is_refused_in_one_line(tmp_path: Path) -> None:
    model = asdict(small_config())
    unknown = {**model, "vision": {**model["vision"], "stem": []}}
    for kind, load in (("backbone", load_backbone), ("statement", load_classification_model)):
        for number, described in enumerate(({}, {"model": {}}, {"model": unknown})):
            folder = tmp_path / f"{kind}{number}"
            export_weights(folder, {}, {"kind": kind, **described})
            with pytest.raises(UserError, match=rf"{folder}: .*does not tell the sizes of a model"):
                load(folder)


def test_an_export_without_its_weights_or_trimmers_is_refused(tmp_path: Path) -> None:
    model = asdict(small_config())
    export_weights(tmp_path / "bare", {}, {"kind": "backbone", "model": model})
    with pytest.raises(UserError, match=rf"{tmp_path / 'bare'}: .*visual_encoder"):
        load_backbone(tmp_path / "bare")
    export_weights(tmp_path / "old", {}, {"kind": "statement", "model": model, "trimmers": {"sharpness": 1}})
    with pytest.raises(UserError, match=r"does not tell how it is trimmed and pruned"):
        load_classification_model(tmp_path / "old")


def test_a_blip_for_retrieval_is_a_beginning_whose_decoder_is_drawn(tmp_path: Path) -> None:
    whole = small_model("blip").state_dict()
    config = {"kind": "blip_retrieval", "model": asdict(small_config(backbone="blip"))}
    decoder = [name for name in whole if name.startswith("text_decoder.")]
    export_weights(tmp_path / "export", {name: t for name, t in whole.items() if name not in decoder}, config)
    found = load_backbone(tmp_path / "export").state_dict()
    assert decoder and found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole if name not in decoder)
    export_weights(tmp_path / "less", {"temp": whole["temp"]}, config)
    with pytest.raises(UserError, match="missing"):
        load_backbone(tmp_path / "less")


@pytest.mark.parametrize("answers", [["yes", "no"], ["yes", "no", "2", "3"], ["no", "yes", "2"]])
def test_another_list_of_answers_beside_a_decoder_is_refused(answers: list[str], tmp_path: Path) -> None:
    folder = answering_export(tmp_path, ["yes", "no", "2"], 3)
    (folder / "answers.json").write_text(json.dumps(answers))
    with pytest.raises(UserError, match=f"lists {len(answers)} answers that are not the 3 that the model learned"):
        load_classification_model(folder)
    described = json.loads((folder / "config.json").read_text())
    del described["answer_list"]  # as older exports are
    (folder / "config.json").write_text(json.dumps(described))
    assert load_classification_model(folder)[0].classes.names == tuple(answers)


def test_whoever_may_read_the_config_may_read_the_weights(tmp_path: Path) -> None:
    export_weights(tmp_path / "export", small_model("albef").state_dict(), {"kind": "backbone"})
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "export").iterdir()}
    assert len(modes) == 1
