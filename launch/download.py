"""`trimline download`: its options, its progress, and what it says at the end."""

import argparse
import dataclasses
import logging
import sys
import time
from typing import Any

from tqdm import tqdm

from data_prep.download.config import FORMATS, DownloadConfig

_LINE_SECONDS = 15.0
_HELP = {
    "format": f"of the list: auto, {', '.join(FORMATS)}",
    "url_column": "name of the URLs' column or field (url; albef: image)",
    "caption_column": "name of the captions' column or field (caption)",
    "split": "the shards go to DIR/SPLIT",
    "name": "data set's name in every sample (the list's)",
    "retries": "passes over what failed in a way that may pass",
    "processes": "of img2dataset, and of the writer of the shards (one a core)",
    "threads": "requests at a time of each process",
    "timeout": "seconds that a server may stay silent",
    "max_seconds": "seconds that a picture may take in all",
    "max_mib": "size that a picture may have",
    "min_side": "width and height that a picture must have, in pixels",
    "max_side": "re-encode larger pictures to have this longer side, in pixels (none: bytes as they came)",
    "shard_samples": "samples a shard",
    "shard_urls": "URLs that a stop may cost (100 to 10,000 by the list's length)",
    "stall_seconds": "seconds without a sign of life after which img2dataset is started anew",
    "tool_env": "img2dataset's own environment, made where there is none ($TRIMLINE_TOOL_ENV, or the cache folder)",
}


def add_download_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `trimline download`; each is a field of `DownloadConfig` and has its default."""
    parser.add_argument("list", metavar="LIST", help="file with URLs and captions")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the shards")
    fields = {field.name: field for field in dataclasses.fields(DownloadConfig)}
    for name, text in _HELP.items():
        whole = "int" in str(fields[name].type)
        default = fields[name].default
        shown = text if default is None else f"{text} (%(default)s)"
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=int if whole else str,
            default=default,
            metavar="N" if whole else "WORD",
            help=shown,
        )
    parser.add_argument("--allow-private", action="store_true", help="ask loopback and private addresses too")
    parser.add_argument("--keep-raw", action="store_true", help="keep what img2dataset wrote, in DIR/.download-SPLIT")


def download_command(options: argparse.Namespace) -> tuple[int, dict[str, Any], str]:
    """Downloads a list.

    Returns:
        Exit code 0, the account with the folder of the shards, and the account as text.

    Raises:
        UserError: see `data_prep.download.job.download`.
    """
    names = [field.name for field in dataclasses.fields(DownloadConfig)]
    config = DownloadConfig(**{name: getattr(options, name) for name in names})
    from data_prep.download.account import account_lines
    from data_prep.download.job import download, shard_folder

    # It names the first hundred samples that it leaves out; of old links that is the usual, and the account has it.
    logging.getLogger("data_prep.writer").setLevel(logging.DEBUG if options.verbose else logging.ERROR)
    with _Display() as display:
        account = download(config, display.show)
    folder = shard_folder(config)
    return 0, {"shards": str(folder), **account}, "\n".join([f"{folder}:", *account_lines(account)])


class _Display:
    """A bar for each part of the work on a terminal, a line now and then elsewhere; used as a context manager."""

    def __init__(self) -> None:
        self._bars_wanted = sys.stderr.isatty()
        self._bar: tqdm[Any] | None = None
        self._what = ""
        self._next_line = 0.0

    def __enter__(self) -> "_Display":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, what: str, done: int, total: int, remark: str) -> None:
        """See `data_prep.download.job.Progress`."""
        if self._bars_wanted:
            self._draw(what, done, total, remark)
        elif time.monotonic() >= self._next_line or what != self._what:
            self._what, self._next_line = what, time.monotonic() + _LINE_SECONDS
            amount = f"{done:,} of {total:,}" if total else f"{done:,} lines"
            sys.stderr.write(f"{what}: {amount}{', ' if remark else ''}{remark}\n")
            sys.stderr.flush()

    def _draw(self, what: str, done: int, total: int, remark: str) -> None:
        if self._bar is None or what != self._what:
            if self._bar is not None:
                self._bar.close()
            self._bar, self._what = tqdm(desc=what, file=sys.stderr, unit=""), what
        self._bar.total, self._bar.n = total or None, done
        self._bar.set_postfix_str(remark)
