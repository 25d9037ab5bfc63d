"""What can be asked of a download."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_prep.errors import UserError

ListFormat = Literal["auto", "cc3m", "cc12m", "sbu", "albef", "csv", "tsv", "json", "parquet"]
FORMATS: tuple[str, ...] = ("cc3m", "cc12m", "sbu", "albef", "csv", "tsv", "json", "parquet")
"""All but `auto`; `lists.py` describes them."""


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """What to download, and how.

    Attributes:
        list: File with URLs and captions.
        out: Folder for the splits.
        format: Of the list; `auto` looks at its name and beginning.
        url_column: Name of the URLs' column, where the format has names.
        caption_column: Name of the captions' column.
        split: The shards go to `out/split`.
        name: The data set's name in every sample; by default the list's.
        retries: Passes over what failed in a way that may pass.
        processes: Of img2dataset; by default one a core.
        threads: Requests at a time of each process.
        timeout: Seconds that a server may stay silent.
        max_seconds: Seconds that a picture may take in all.
        max_mib: Size that a picture may have.
        min_side: Width and height that a picture must have, in pixels.
        max_side: Larger pictures are re-encoded to have this longer side, in pixels; by default none is.
        shard_samples: Samples a shard.
        shard_urls: URLs that a stop may cost; by default 100 to 10,000 by the list's length.
        allow_private: Whether loopback and private addresses may be asked.
        stall_seconds: Seconds without a sign of life after which img2dataset is started anew.
        tool_env: Folder of img2dataset's environment.
        keep_raw: Whether to keep what img2dataset wrote.
    """

    list: str
    out: str
    format: ListFormat = "auto"
    url_column: str | None = None
    caption_column: str | None = None
    split: str = "train"
    name: str | None = None
    retries: int = 1
    processes: int | None = None
    threads: int = 64
    timeout: int = 10
    max_seconds: int = 60
    max_mib: int = 64
    min_side: int = 32
    max_side: int | None = None
    shard_samples: int = 1000
    shard_urls: int | None = None
    allow_private: bool = False
    stall_seconds: int = 300
    tool_env: str | None = None
    keep_raw: bool = False

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        for field, low, high in _RANGES:
            value = getattr(self, field)
            if value is not None and not low <= value <= high:
                raise UserError(f"--{field.replace('_', '-')} {value} must be from {low} to {high}")
        if self.format not in ("auto", *FORMATS):
            raise UserError(f"--format {self.format} is not known; use auto or one of {', '.join(FORMATS)}")
        if self.max_side is not None and self.max_side < self.min_side:
            raise UserError(f"--max-side {self.max_side} is below --min-side {self.min_side}: no picture would be left")
        if "://" in self.out:
            raise UserError(
                f"--out {self.out}: a folder on this machine is wanted; copy its shards when they are there"
            )
        if re.search(r"[*?\[]|::", str(Path(self.out).expanduser().absolute())):
            raise UserError(
                f"--out {self.out}: img2dataset takes '*', '?', '[' and '::' for patterns; give another folder"
            )
        for field in ("split", "name"):
            value = getattr(self, field)
            if value is not None and not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", value):
                raise UserError(f"--{field} {value!r} must be 1 to 80 letters, digits, '_' or '-'")


_RANGES = (
    ("retries", 0, 20),
    ("processes", 1, 1024),
    ("threads", 1, 4096),
    ("timeout", 1, 3600),
    ("max_seconds", 1, 86400),
    ("max_mib", 1, 1024),
    ("min_side", 1, 100_000),
    ("max_side", 16, 100_000),
    ("shard_samples", 1, 1_000_000),
    ("shard_urls", 1, 100_000),
    ("stall_seconds", 1, 86400),
)
