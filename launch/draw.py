"""`trimline draw`: drawn shapes in the files of published data sets."""

import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from data_prep.errors import UserError
from data_prep.shapes_published import write_published
from launch.answers import Answer


def draw_command(name: str, out: Path, sizes: Sequence[str], image_size: int, seed: int) -> Answer:
    """Draws a data set.

    Args:
        name: Of the data set.
        out: Folder to write.
        sizes: ``SPLIT=N``, pictures of each split, or pairs.
        image_size: Width and height in pixels.
        seed: Decides everything.

    Raises:
        UserError: Sizes that cannot be read or drawn, or a folder that is in use.
    """
    wanted: dict[str, int] = {}
    for size in sizes:
        split, _, number = size.partition("=")
        if not number.isdecimal():
            raise UserError(f"--size {size} is not SPLIT=N; give such as train=2000")
        wanted[split] = int(number)
    unit = "pair" if name == "nlvr2" else "picture"
    with tqdm(total=sum(wanted.values()), unit=unit, file=sys.stderr, disable=None) as bar:
        write_published(name, out, wanted, image_size, seed, bar.update)
    return 0, {"name": name, "out": str(out), "sizes": wanted}, f"{sum(wanted.values())} {unit}s of {name} in {out}"
