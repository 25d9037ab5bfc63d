from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from launch.report.html import _frame_words
from launch.report.survivors import cells_path, join_steps, read_pictures


def cells_of(path: str, columns: int) -> set[int]:
    """The patches that a path covers, read back from its boxes."""
    found = set()
    for box in path.split("M")[1:]:
        corner, rest = box.split("h", 1)
        column, row = map(int, corner.split())
        found |= {row * columns + column + at for at in range(int(rest.split("v")[0]))}
    return found


@given(st.integers(1, 9), st.sets(st.integers(0, 80)))
def test_the_path_covers_exactly_the_patches(columns: int, patches: set[int]) -> None:
    path = cells_path(patches, columns)
    assert cells_of(path, columns) == patches
    for box in path.split("M")[1:]:
        corner, rest = box.split("h", 1)
        assert int(corner.split()[0]) + int(rest.split("v")[0]) <= columns


@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [
        (["v1", "v2"], ["t1"], ["v1", "v2", "t1"]),
        (["a", "b", "c"], ["a", "c"], ["a", "b", "c"]),
        (["a", "c"], ["a", "b", "c"], ["a", "b", "c"]),
        (["a", "b"], [], ["a", "b"]),
        ([], ["a"], ["a"]),
        (["a", "f"], ["a", "x", "f", "g"], ["a", "x", "f", "g"]),
    ],
)
def test_steps_of_patches_and_text_make_one_order(first: list[str], second: list[str], joined: list[str]) -> None:
    assert join_steps(first, second) == joined


def sentence(**given: object) -> dict[str, object]:
    steps = [
        {"name": "layer 1", "grid": [2, 2], "kept": [0, 1, 3], "merged": False},
        {"name": "layer 2", "grid": [2, 2], "kept": [3], "merged": True},
    ]
    text = [{"name": "layer 2", "kept": [0]}]
    return {"text": "a b", "label": True, "model": "2.0x", "steps": steps, "tokens": ["a", "b"],
            "text_steps": text, "gmacs": 0.5, **given}  # fmt: skip


def picture(folder: Path, name: str = "a.png", size: tuple[int, int] = (8, 8)) -> None:
    Image.new("RGB", size, (9, 99, 200)).save(folder / name)


def test_frames_say_what_is_gone_and_what_the_step_itself_trimmed(tmp_path: Path) -> None:
    picture(tmp_path)
    [shown], problems = read_pictures([{"image": "a.png", "sentences": [sentence()]}], tmp_path)
    assert not problems
    [model] = shown.models
    assert model.steps == ("input", "layer 0", "layer 1")
    frames = model.panels[0].frames
    assert [frame.kept for frame in frames] == [4, 3, 1]
    assert [cells_of(frame.gone, 2) for frame in frames] == [set(), set(), {2}]
    assert [cells_of(frame.fresh, 2) for frame in frames] == [set(), {2}, {0, 1}]
    assert [frame.dropped_tokens for frame in frames] == [(), (), (1,)]
    assert [frame.merged for frame in frames] == [0, 0, None]


def test_the_number_of_merged_tokens_is_told(tmp_path: Path) -> None:
    picture(tmp_path)
    steps = [{"name": f"layer {at}", "layer": at, "grid": [2, 2], "kept": [3], "merged": at} for at in range(3)]
    [shown], _ = read_pictures([{"image": "a.png", "sentences": [sentence(steps=steps, text_steps=[])]}], tmp_path)
    panel = shown.models[0].panels[0]
    words = [_frame_words(panel, frame).split(" · ")[0] for frame in panel.frames]
    left = "1 of 4 patches"
    assert words == ["4 of 4 patches", left, f"{left}, the others merged into 1", f"{left}, the others merged into 2"]


def test_the_most_trimmed_model_is_shown_first(tmp_path: Path) -> None:
    picture(tmp_path)
    costs = {"pretrain": 0.1, "2.0x": 0.5, "3.0x": 0.3, "1.5x": 0.7}
    entry = {"image": "a.png", "sentences": [sentence(model=name, gmacs=cost) for name, cost in costs.items()]}
    [shown], _ = read_pictures([entry], tmp_path)
    assert shown.models[shown.opened].name == "3.0x"


def test_what_the_sentences_of_a_picture_have_in_common_is_told(tmp_path: Path) -> None:
    picture(tmp_path)
    steps = [[{"name": "layer 1", "grid": [2, 2], "kept": kept}] for kept in ([0, 1], [1, 2])]
    both = [sentence(steps=each) for each in steps]
    entry = {"image": "a.png", "sentences": [*both, sentence(model="alone")]}
    [shown], _ = read_pictures([entry], tmp_path)
    said = "of the patches that one of two sentences keeps in the end, both keep 33%"
    assert [model.in_common for model in shown.models] == [said, ""]


def test_layers_count_from_0_whichever_trimline_wrote_them(tmp_path: Path) -> None:
    picture(tmp_path)
    steps = [{"name": f"vision layer {at}", "grid": [2, 2], "kept": [0], "merged": False} for at in (10, 11)]
    new = sentence(steps=[{**step, "layer": at} for at, step in enumerate(steps, 10)], text_steps=[])
    for written, names in ((sentence(steps=steps, text_steps=[]), (9, 10)), (new, (10, 11))):
        [shown], _ = read_pictures([{"image": "a.png", "sentences": [written]}], tmp_path)
        assert shown.models[0].steps == ("input", *(f"vision layer {at}" for at in names))
        assert [frame.kept for frame in shown.models[0].panels[0].frames] == [4, 1, 1]


def test_sentences_of_a_model_share_their_steps(tmp_path: Path) -> None:
    picture(tmp_path)
    short = sentence(steps=[{"name": "layer 1", "grid": [2, 2], "kept": [0], "merged": False}], text_steps=[])
    entry = {"image": "a.png", "sentences": [sentence(), short, sentence(model="pretrain")]}
    [shown], _ = read_pictures([entry], tmp_path)
    assert [model.name for model in shown.models] == ["2.0x", "pretrain"]
    frames = shown.models[0].panels[1].frames
    assert [frame.kept for frame in frames] == [4, 1, 1]


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    picture(tmp_path, "cut.png", (64, 64))
    cut = tmp_path / "cut.png"
    cut.write_bytes(cut.read_bytes()[:-40])
    names = ["broken.png", "absent.png", "cut.png", "../outside.png"]
    shown, problems = read_pictures([{"image": name, "sentences": [sentence()]} for name in names], tmp_path)
    assert not shown
    assert [name for name, problem in zip(names, problems, strict=True) if name in problem] == names


def test_large_pictures_are_made_smaller(tmp_path: Path) -> None:
    noise = Image.effect_noise((1600, 400), 80)
    noise.save(tmp_path / "a.png")
    [shown], _ = read_pictures([{"image": "a.png", "sentences": [sentence()]}], tmp_path)
    assert (shown.width, shown.height) == (800, 200)
    assert shown.source.startswith("data:image/jpeg;base64,") and len(shown.source) < 400_000
