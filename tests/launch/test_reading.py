"""Typed configurations from YAML and overrides; every recipe that is shipped."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest
import torch
import yaml

from data_prep.errors import UserError
from launch.config import RunConfig
from launch.reading import as_json, dump_config, known_keys, read_config
from launch.recipes import find_recipe, recipe_folder, recipes
from pipeline.models.build import BACKBONES, build_model
from pipeline.param_groups import check_lr_scales
from pipeline.pretrain import check_pretrain


@dataclass(frozen=True, kw_only=True)
class Oven:
    """An oven.

    Attributes:
        heat: In degrees.
        rate: Of heating.
        shelves: Which ones are used.
        loaves: By name.
    """

    heat: int = 200
    rate: float = 0.5
    shelves: tuple[int, ...] = (1,)
    loaves: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.heat > 400:
            raise UserError(f"heat={self.heat} burns; try 200")


@dataclass(frozen=True, kw_only=True)
class Bakery:
    """A bakery.

    Attributes:
        name: Its name.
        oven: Its oven.
        spare: Another one.
        bread: What it bakes.
        door: Open or not.
    """

    name: str
    oven: Oven = field(default_factory=Oven)
    spare: Oven = field(default_factory=Oven)
    bread: Literal["rye", "wheat"] = "rye"
    door: bool = True


def read(text: str, *overrides: str, folder: Path) -> Bakery:
    file = folder / "bakery.yaml"
    file.write_text(text)
    return read_config(Bakery, [file], overrides)


def test_a_number_in_scientific_notation_is_a_number(tmp_path: Path) -> None:
    assert read("name: x\noven: {rate: 1e-4}", folder=tmp_path).oven.rate == 1e-4


@pytest.mark.parametrize(
    ("key", "told"),
    [("cluster.workers", "whole number, the keys of WorkerRange"), ("engine.micro_batch", "whole number, null")],
)
def test_a_value_of_no_kind_that_will_do_is_told_without_types_of_python(key: str, told: str) -> None:
    with pytest.raises(UserError, match=f"Expected one of: {told}. Got value: two$"):
        read_config(RunConfig, [find_recipe("configs/runs/demo.yaml")], [f"--{key}=two"])


def test_later_files_win_and_overrides_win_over_files(tmp_path: Path) -> None:
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text("name: x\noven: {heat: 100, rate: 0.1}\nbread: wheat")
    second.write_text("oven: {heat: 150}")
    config = read_config(Bakery, [first, second], ["--bread", "rye", "--door=false", "--oven.loaves.rye", "3"])
    assert config == Bakery(name="x", oven=Oven(heat=150, rate=0.1, loaves={"rye": 3}), bread="rye", door=False)


def test_what_is_written_reads_back_to_the_same(tmp_path: Path) -> None:
    config = read("name: x\noven: {shelves: [1, 2], rate: 1e-5, loaves: {a: 1}}", folder=tmp_path)
    assert read(dump_config(config), folder=tmp_path) == config


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("name: x\noven: {haet: 1}", [], ["oven.haet", "bakery.yaml", "did you mean oven.heat?"]),
        ("name: x\nbraed: rye", [], ["braed", "did you mean bread?"]),
        ("name: x", ["--oven.raet", "1"], ["oven.raet", "the command line", "did you mean oven.rate?"]),
        ("name: x", ["--heat=1"], ["unknown key heat", "did you mean oven.heat?"]),
        ("name: x", ["--oven.heat", "hot"], ["oven.heat", "hot", "whole number"]),
        ("name: x\nbread: oat", [], ["bread", "rye", "wheat", "oat"]),
        ("bread: rye", [], ["name"]),
        ("name: x\noven: {heat: 500}", [], ["oven.heat=500 burns; try 200"]),
        ("name: x\nspare: {heat: 500}", [], ["spare.heat=500 burns; try 200"]),
        ("- a\n- b", [], ["bakery.yaml", "list"]),
        ("# all of it is a comment", [], ["bakery.yaml is empty", "keys and values"]),
        ("name: x\ndoor: ajar", [], ["door", "Expected true or false", "ajar"]),
        ("name: [", [], ["bakery.yaml", "YAML"]),
        ("name: x", ["--oven.heat"], ["heat"]),
    ],
)
def test_a_mistake_is_told_in_one_line(tmp_path: Path, text: str, overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        read(text, *overrides, folder=tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert not [word for word in words if word not in message], message


def test_a_missing_file_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_config(Bakery, [tmp_path / "none.yaml"], [])


def test_known_keys_go_down_into_groups() -> None:
    assert known_keys(Bakery)[:3] == ["name", "oven", "oven.heat"]


@pytest.mark.parametrize("recipe", [name for name in recipes() if name.startswith("configs/runs/")])
def test_every_recipe_of_a_run_parses_and_prints_a_config_that_reads_back(recipe: str, tmp_path: Path) -> None:
    config = read_config(RunConfig, [find_recipe(recipe)], [])
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert read_config(RunConfig, [again], []) == config
    assert yaml.safe_load(again.read_text()) == as_json(config)


SIZES = [name for name in recipes() if name.startswith("configs/models/")]


@pytest.mark.parametrize("size", SIZES)
def test_every_pretraining_recipe_fits_every_size_of_its_backbone(size: str) -> None:
    backbone = Path(size).stem.partition("_")[0]
    config = read_config(RunConfig, [find_recipe(size), find_recipe(f"configs/pretrain/{backbone}_4m.yaml")], [])
    check_pretrain(config.pretrain, config.model, config.loader, config.engine, config.cluster.workers)
    words = config.tokenizer.vocab_size
    sized = replace(config.model, text=replace(config.model.text, vocab_size=words))
    with torch.device("meta"):
        model = build_model(sized)
    check_lr_scales(model, config.pretrain.lr_scales)
    assert config.pretrain.pruning.chosen is config.pretrain.pruning.elip
    smallest = min(config.pretrain.pruning.tokens_by_layer(model.visual_encoder.config.depth, sized.vision.patches))
    assert smallest.attention < 0.5 * sized.vision.patches


def test_every_pretraining_recipe_has_sizes_to_lie_over() -> None:
    backbones = {Path(name).stem.partition("_")[0] for name in recipes() if name.startswith("configs/pretrain/")}
    assert backbones == set(BACKBONES)
    assert {Path(name).stem for name in SIZES} == {f"{b}_{s}" for b in BACKBONES for s in ("tiny", "small", "base")}


def test_a_recipe_is_found_by_path_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no configs/ lies
    shipped = recipe_folder() / "runs" / "demo.yaml"
    for name in ("configs/runs/demo.yaml", "runs/demo.yaml", "runs/demo", str(shipped)):
        assert find_recipe(name) == shipped
    mine = tmp_path / "mine.yaml"
    mine.touch()
    assert find_recipe("mine.yaml") == Path("mine.yaml")


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"configs/runs/demo\.yaml"):
        find_recipe("configs/runs/dmeo.yaml")


@dataclass(frozen=True, kw_only=True)
class House:
    """A house with an oven.

    Attributes:
        number: Of the street.
        oven: Its oven.
    """

    number: int
    oven: Oven = field(default_factory=Oven)


@dataclass(frozen=True, kw_only=True)
class Street:
    """A street.

    Attributes:
        oven: That of all.
        houses: By name.
    """

    oven: Oven = field(default_factory=Oven)
    houses: dict[str, House] = field(default_factory=dict)


HOUSES = "houses:\n  red: {number: 1, oven: {heat: 100, loaves: {a: 1}}}\n  blue: {number: 2}\n"


def street(text: str, *overrides: str, folder: Path) -> Street:
    file = folder / "street.yaml"
    file.write_text(text)
    return read_config(Street, [file], overrides)


def test_parts_with_names_are_laid_over_each_other_key_by_key(tmp_path: Path) -> None:
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text(HOUSES)
    second.write_text("houses: {red: {oven: {rate: 1e-4}}, get_3: {number: 3}}")
    words = ["--houses.red.number=7", "--houses.blue.oven.shelves", "[2, 3]", "--houses.red.oven.loaves.b", "5"]
    read = read_config(Street, [first, second], [*words, "--houses.get.number", "9"])
    red = House(number=7, oven=Oven(heat=100, rate=1e-4, loaves={"a": 1, "b": 5}))
    blue = House(number=2, oven=Oven(shelves=(2, 3)))
    assert read == Street(houses={"red": red, "blue": blue, "get_3": House(number=3), "get": House(number=9)})
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(read))
    assert read_config(Street, [again], []) == read


def test_a_dotted_key_of_a_file_names_a_part_too(tmp_path: Path) -> None:
    assert street("houses.red.number: 4", folder=tmp_path) == Street(houses={"red": House(number=4)})


@pytest.mark.parametrize("text", ["houses: {}", "oven: {heat: 200}"])
def test_a_part_may_be_added_to_none(text: str, tmp_path: Path) -> None:
    assert street(text, folder=tmp_path) == Street()
    assert street(text, "--houses.red.number=1", folder=tmp_path) == Street(houses={"red": House(number=1)})


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("houses: {red: {nubmer: 1}}", [], ["houses.red.nubmer", "street.yaml", "did you mean houses.red.number?"]),
        (HOUSES, ["--houses.red.oven.haet=1"], ["houses.red.oven.haet", "did you mean houses.red.oven.heat?"]),
        (HOUSES, ["--houses.red.number=one"], ["houses.red.number", "one", "whole number"]),
        (HOUSES, ["--houses.green.oven.heat=1"], ["houses.green.number is missing"]),
        (HOUSES, ["--houses.blue.oven.heat=500"], ["houses.blue.oven.heat=500 burns; try 200"]),
        (HOUSES, ["--oven.heat=500"], ["oven.heat=500 burns"]),
        (HOUSES, ["--houses.Red.number=1"], ["houses.Red", "small letters"]),
        ("houses: {1: {number: 1}}", [], ["houses.1: a name is a word"]),
        ("oven: {}\nhouses:", [], ["houses=None in", "names are wanted"]),
        ("houses: [red]", [], ["houses=['red'] in", "street.yaml", "each with its keys"]),
        ("houses: {red: 3}", [], ["houses.red"]),
        (HOUSES, ["--houses", "{}"], ["--houses is given by name and key, such as --houses.NAME.oven"]),
    ],
)
def test_a_mistake_in_a_part_is_told_with_its_name(
    tmp_path: Path, text: str, overrides: list[str], words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        street(text, *overrides, folder=tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert not [word for word in words if word not in message], message
    assert message.startswith("oven") == (overrides == ["--oven.heat=500"])
