"""Drawn shapes in the files that data sets are published as: VQA v2, SNLI-VE, NLVR2, COCO, NoCaps, Flickr30K.

From there they go the way of the real ones: `trimline shard vqa`, `trimline shard nlvr2`, `trimline score`.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from data_prep.errors import UserError
from data_prep.files import atomic_dir
from data_prep.shapes import REALMS, ShapesSplit
from data_prep.shapes_draw import draw_picture
from data_prep.shapes_language import NUMBER_WORDS, PLACES
from data_prep.shapes_pairs import draw_quartet
from data_prep.shapes_relations import TOGETHER, draw_related
from data_prep.shapes_told import (
    COCO_SPLITS,
    DOMAINS,
    FLICKR_SPLITS,
    NOCAPS_SPLITS,
    write_coco,
    write_flickr30k,
    write_nocaps,
)
from data_prep.shapes_world import COLOURS, Dice

PublishedName = Literal["vqa", "snli_ve", "nlvr2", "coco", "nocaps", "flickr30k"]
PUBLISHED: tuple[str, ...] = get_args(PublishedName)

_ANNOTATORS = 10
_FIRM = 6  # annotators who always say the right thing, so that it is what most say
_DOUBT = 0.1  # of each of the others
_VQA_SPLITS = {"train": ("train", "train2014"), "val": ("val", "val2014"), "test": ("test", "test2015")}
"""By split: the realm that is drawn, and the name in COCO's files; annotations of test are not published."""
_VE_SPLITS = {"train": "train", "dev": "val", "test": "test"}
_NLVR2_SPLITS = {"train": "train", "dev": "val", "test1": "test"}
_SETS = 100  # in a folder of the training pictures
_APART = 1_000_000  # from one split's picture numbers to the next's

Counted = Callable[[int], None]


def write_published(
    name: str, out: Path, sizes: Mapping[str, int], image_size: int, seed: int, drawn: Counted = lambda _: None
) -> None:
    """Draws a data set; the folder is there whole or not at all.

    Args:
        name: One of `PUBLISHED`.
        out: Folder to write; not there yet, or empty.
        sizes: Pictures by split, or pairs of them, under the data set's own names of splits.
        image_size: Width and height in pixels.
        seed: Decides everything.
        drawn: Called with 1 for each picture or pair.

    Raises:
        UserError: Sizes that cannot be, or a folder that is in use.
    """
    splits, unit, write = _DRAWN[name]
    for split, size in sizes.items():
        if split not in splits:
            raise UserError(f"{name} has no split {split!r}; it has {', '.join(splits)}")
        if size < unit or size % unit:
            raise UserError(f"{split}={size} must be a multiple of {unit}, for they come by {unit}s; try {6 * unit}")
    if not 16 <= image_size <= 4096:
        raise UserError(f"image_size={image_size} must be from 16 to 4096 pixels; try 64")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder; give another one")
    with atomic_dir(out) as aside:
        for _ in write(aside, sizes, image_size, seed):
            drawn(1)


def _write_vqa(out: Path, split: str, size: int, image_size: int, seed: int) -> Iterator[None]:
    realm, part = _VQA_SPLITS[split]
    (out / part).mkdir()
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, record in enumerate(
        ShapesSplit(name=realm, size=size, image_size=image_size, seed=seed).records(0, size)
    ):
        image = list(_VQA_SPLITS).index(split) * _APART + number + 1
        (out / part / f"COCO_{part}_{image:012d}.jpg").write_bytes(record.images[""])
        for place, asked in enumerate(record.questions):
            named = {"question_id": 1000 * image + place, "image_id": image}
            questions.append({**named, "question": asked["question"]})
            annotations.append({**named, **_annotation(asked, Dice(f"shapes/{seed}/vqa/{image}/{place}"))})
        yield
    head = {"info": {"description": "drawn shapes"}, "license": {}, "data_type": "mscoco", "data_subtype": part}
    _write(out / f"v2_OpenEnded_mscoco_{part}_questions.json", {**head, "questions": questions})
    if split != "test":
        _write(out / f"v2_mscoco_{part}_annotations.json", {**head, "annotations": annotations})


def _annotation(asked: Mapping[str, str], dice: Dice) -> dict[str, Any]:
    """What ten annotators say; a few of them sometimes see another thing of the same kind."""
    # The server's answers have numbers in digits; a predicted "two" counts as "2".
    numbers = {word: str(number) for number, word in enumerate(NUMBER_WORDS)}
    counts = asked["question"].startswith("how many")
    right = numbers[asked["answer"]] if counts else asked["answer"]
    kinds = {"number": tuple(numbers.values())[1:], "yes/no": ("yes", "no")}
    kind = next((kind for kind, known in kinds.items() if right in known), "other")
    others = [one for one in kinds.get(kind, COLOURS if right in COLOURS else PLACES) if one != right]
    said = [dice.pick(others) if place >= _FIRM and dice.chance(_DOUBT) else right for place in range(_ANNOTATORS)]
    return {
        "question_type": " ".join(asked["question"].split()[:2]),
        "answer_type": kind,
        "multiple_choice_answer": right,
        "answers": [
            {"answer": answer, "answer_confidence": "yes", "answer_id": place + 1} for place, answer in enumerate(said)
        ],
    }


def _write_snli_ve(out: Path, split: str, size: int, image_size: int, seed: int) -> Iterator[None]:
    folder = out / "flickr30k-images"
    folder.mkdir(exist_ok=True)
    lines = []
    for drawing in draw_related(_VE_SPLITS[split], size, image_size, seed):
        name = str(list(_VE_SPLITS).index(split) * _APART + drawing.number + 1)
        (folder / f"{name}.jpg").write_bytes(drawing.picture)
        for place, (text, relation) in enumerate(drawing.sentences):
            premise = drawing.captions[place % len(drawing.captions)]
            caption = f"{name}.jpg#{place}"
            lines.append(
                {
                    "annotator_labels": [relation],
                    "captionID": caption,
                    "gold_label": relation,
                    "pairID": f"{caption}r1{relation[0]}",
                    "sentence1": premise,
                    "sentence2": text,
                    "Flickr30K_ID": name,
                }
            )
        yield
    (out / f"snli_ve_{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _write_nlvr2(out: Path, split: str, size: int, image_size: int, seed: int) -> Iterator[None]:
    """Sets of two pairs with four sentences, each true of one pair: an identifier is split-set-pair-sentence."""
    lines = []
    for number in range(size // 2):
        # The authors' training pictures lie in numbered folders, the others side by side.
        place = {"directory": number // _SETS} if split == "train" else {}
        folder = out / "images" / Path(*(str(part) for part in (split, *place.values())))
        folder.mkdir(parents=True, exist_ok=True)
        dice = Dice(f"shapes/{seed}/nlvr2/{split}/{number}")
        one, other, claims = draw_quartet(dice, REALMS[_NLVR2_SPLITS[split]])
        for pair, scenes in enumerate((one, other)):
            for side, scene in enumerate(scenes):
                # JPEG, whatever the name says, as most of the real ones.
                (folder / f"{split}-{number}-{pair}-img{side}.png").write_bytes(draw_picture(scene, image_size, dice))
            lines += [
                {
                    "identifier": f"{split}-{number}-{pair}-{told}",
                    "sentence": text,
                    "label": str(claim.holds(scenes)),
                    "writer": 0,
                    "synset": claim.form,
                    "left_url": "",
                    "right_url": "",
                    **place,
                }
                for told, (claim, text) in enumerate(claims)
            ]
            yield
    (out / f"{split}.json").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


_Write = Callable[[Path, Mapping[str, int], int, int], Iterator[None]]
_WriteSplit = Callable[[Path, str, int, int, int], Iterator[None]]


def _split_by_split(write: _WriteSplit) -> _Write:
    """Writes a data set whose splits have files of their own."""

    def write_all(out: Path, sizes: Mapping[str, int], image_size: int, seed: int) -> Iterator[None]:
        for split, size in sizes.items():
            yield from write(out, split, size, image_size, seed)

    return write_all


_DRAWN: Mapping[str, tuple[Collection[str], int, _Write]] = {
    "vqa": (_VQA_SPLITS, 2, _split_by_split(_write_vqa)),
    "snli_ve": (_VE_SPLITS, TOGETHER, _split_by_split(_write_snli_ve)),
    "nlvr2": (_NLVR2_SPLITS, 2, _split_by_split(_write_nlvr2)),
    "coco": (COCO_SPLITS, 1, _split_by_split(write_coco)),
    "nocaps": (NOCAPS_SPLITS, len(DOMAINS), _split_by_split(write_nocaps)),
    "flickr30k": (FLICKR_SPLITS, 1, write_flickr30k),
}
"""Splits, how many pictures or pairs come together, and who writes them, yielding after each."""
