"""Reads lists of URLs and captions as they are published, line by line, in memory that does not grow.

| format | file |
|---|---|
| cc3m | Conceptual Captions (Sharma et al. 2018): `Train_GCC-training.tsv`, `Validation_GCC-1.1.0-Validation.tsv`; a line is caption, tab, URL |
| cc12m | Conceptual 12M (Changpinyo et al. 2021): `cc12m.tsv`; a line is URL, tab, caption |
| sbu | SBU captioned photos (Ordonez et al. 2011): `sbu-captions-all.json`, an object of lists `image_urls` and `captions`; or the older pair `SBU_captioned_photo_dataset_urls.txt` and `..._captions.txt`, where the URLs' file is named |
| albef | ALBEF's lists (Li et al. 2021): a JSON list of objects, `image` a URL and `caption` a text or a list of texts |
| csv, tsv | with a header line that names the columns |
| json | a list of objects, or an object on each line |
| parquet | with columns of text; captions may be lists of texts |

The first two have no header and no quoting; a header line that somebody put in front (`caption<TAB>url`) is understood.
Texts may be compressed by gzip (`.gz`): tsv, csv, txt and JSON Lines.
"""  # noqa: E501

import contextlib
import csv
import gzip
import itertools
import urllib.parse
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.download.config import FORMATS
from data_prep.errors import UserError
from data_prep.json_stream import loads, stream_json

_NAMED = frozenset({"albef", "csv", "tsv", "json", "parquet"})
_MISSING = object()
_LONGEST = 16 << 20  # characters; a file without ends of lines is read in such pieces, and none of them is a record
_UNREADABLE = (
    csv.Error, pa.ArrowInvalid, EOFError, gzip.BadGzipFile, zlib.error,
    UnicodeError,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ListSpec:
    """A list whose format is known.

    Attributes:
        path: The file; of SBU's pair the one with the URLs.
        format: One of `FORMATS`.
        url: Column or field of the URLs, where the format has names.
        caption: Column or field of the captions.
    """

    path: Path
    format: str
    url: str
    caption: str

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that the list consists of."""
        return (self.path, _captions_file(self.path)) if _is_pair(self) else (self.path,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What a line asks for; `fault` says why nothing can be fetched for it, where that is so."""

    url: str
    captions: tuple[str, ...]
    fault: str | None = None


def find_list(path: Path, kind: str = "auto", url: str | None = None, caption: str | None = None) -> ListSpec:
    """Looks at a list's name and beginning, and says how to read it.

    Args:
        path: The file.
        kind: One of `FORMATS`, or `auto` to find out.
        url: Column of the URLs, for formats that have names; by default `url`, for albef `image`.
        caption: Column of the captions; by default `caption`.

    Raises:
        UserError: the file is missing, or its format is not clear or lacks the columns.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file; give a list of URLs and captions: {', '.join(FORMATS)}")
    with _told(path, "text"):
        found = _guess(path, url) if kind == "auto" else kind
    if found not in _NAMED and (url or caption):
        raise UserError(f"columns were named, but {found} has none; leave --url-column and --caption-column out")
    names = {"url": url or ("image" if found == "albef" else "url"), "caption": caption or "caption"}
    spec = ListSpec(path=path, format=found, **names)
    for file in spec.files:
        if not file.is_file():
            raise UserError(f"{file} is missing; SBU's captions lie beside {path.name} under this name")
    first = next(read_list(spec), None)  # says what is wrong with the columns before anything starts
    if first is None:
        raise UserError(f"{path} holds no line; give a list of URLs and captions")
    return spec


def read_list(spec: ListSpec) -> Iterator[Entry]:
    """Reads a list; gives an entry for each line, in order, faulty ones too.

    Raises:
        UserError: a column is missing, or the file is not of its format.
    """
    readers = {"cc3m": _plain_tsv, "cc12m": _plain_tsv, "sbu": _sbu, "csv": _table, "tsv": _table, "parquet": _parquet}
    reader = readers.get(spec.format, _json)
    with _told(spec.path, spec.format):
        for url, caption in reader(spec):
            yield _entry(url, caption)


@contextlib.contextmanager
def _told(path: Path, kind: str) -> Iterator[None]:
    """Turns what the parsers raise into the user's error."""
    try:
        yield
    except _UNREADABLE as error:
        what = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as {kind} ({what}); give its format with --format") from error


def _entry(url: Any, caption: Any) -> Entry:
    texts = [caption] if isinstance(caption, str) else caption if isinstance(caption, list | tuple) else []
    captions = tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())
    url = url.strip() if isinstance(url, str) else ""
    return Entry(url=url, captions=captions, fault=_fault(url, captions))


def _fault(url: str, captions: Sequence[str]) -> str | None:
    if not url:
        return "no URL"
    if not captions:
        return "no caption"
    try:
        for text in (url, *captions):
            text.encode()
    except UnicodeEncodeError:  # what was no UTF-8 is a lone surrogate now
        return "not UTF-8"
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname
    except ValueError:
        return "malformed URL"
    if parts.scheme.lower() not in ("http", "https"):
        return "not an http or https URL"
    return None if host else "malformed URL"


def _guess(path: Path, url: str | None) -> str:
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix in (".csv", ".parquet"):
        return suffix[1:]
    if suffix == ".txt":
        return "sbu"
    if suffix in (".json", ".jsonl"):
        return _guess_json(path, url)
    if suffix == ".tsv":
        with _open_text(path, newline="\n") as file:
            fields = file.readline().rstrip("\r\n").split("\t")
        if "://" in fields[0]:
            return "cc12m"
        if len(fields) > 1 and "://" in fields[1]:
            return "cc3m"
        return "tsv"
    raise UserError(f"the format of {path} is not clear from its name; give --format {'|'.join(FORMATS)}")


def _guess_json(path: Path, url: str | None) -> str:
    with _open_text(path) as file:
        head = file.read(1000)
    if head.lstrip().startswith("{") and '"image_urls"' in head:
        return "sbu"
    return "albef" if url is None and '"image"' in head and '"url"' not in head else "json"


def _open_text(path: Path, newline: str = "") -> TextIO:
    """Bytes that are no UTF-8 become lone surrogates, so that one bad line does not end the reading."""
    how: dict[str, Any] = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": newline}
    return cast(TextIO, gzip.open(path, "rt", **how) if path.name.endswith(".gz") else open(path, **how))


def _lines(path: Path) -> Iterator[str]:
    """Lines by LF alone, without their ends: a caption may hold what else Python takes for an end of line."""
    with _open_text(path, newline="\n") as file:
        while line := file.readline(_LONGEST):
            yield line.rstrip("\r\n")


def _plain_tsv(spec: ListSpec) -> Iterator[tuple[Any, Any]]:
    """No CSV parser: these files have no quoting, and captions hold quotes."""
    order = (1, 0) if spec.format == "cc3m" else (0, 1)
    for number, line in enumerate(_lines(spec.path)):
        fields = line.split("\t")
        if number == 0 and {"url", "caption"} <= {field.strip().lower() for field in fields}:
            names = [field.strip().lower() for field in fields]
            order = (names.index("url"), names.index("caption"))
            continue
        yield tuple(fields[column] if column < len(fields) else None for column in order)  # type: ignore[misc]


def _is_pair(spec: ListSpec) -> bool:
    return spec.format == "sbu" and ".txt" in spec.path.suffixes


def _captions_file(path: Path) -> Path:
    return path.with_name(path.name.replace("urls", "captions"))


def _sbu(spec: ListSpec) -> Iterator[tuple[Any, Any]]:
    if _is_pair(spec):
        if spec.path == _captions_file(spec.path):
            raise UserError(f"{spec.path}: of SBU's pair give the file of the URLs, `..._urls.txt`")
        yield from _together(spec, _lines(spec.path), _lines(_captions_file(spec.path)))
        return
    urls, captions = (_column(spec.path, name) for name in ("image_urls", "captions"))
    yield from _together(spec, urls, captions)


def _column(path: Path, name: str) -> Iterator[Any]:
    return (value for key, value in _values(path) if key == name)


def _together(spec: ListSpec, urls: Iterable[Any], captions: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    for url, caption in itertools.zip_longest(urls, captions, fillvalue=_MISSING):
        if url is _MISSING or caption is _MISSING:
            raise UserError(f"{spec.path}: there are not as many URLs as captions; fetch the list again")
        yield url, caption


def _table(spec: ListSpec) -> Iterator[tuple[Any, Any]]:
    csv.field_size_limit(_LONGEST)
    with _open_text(spec.path) as file:
        rows = csv.reader(iter(lambda: file.readline(_LONGEST), ""), delimiter="\t" if spec.format == "tsv" else ",")
        names = next(rows, None)
        if names is None:
            raise UserError(f"{spec.path} is empty: its first line names no columns; fetch it again")
        url, caption = _columns(spec, names)
        for row in rows:
            if row:  # an empty line is no record
                yield (row[url] if url < len(row) else None), (row[caption] if caption < len(row) else None)


def _columns(spec: ListSpec, names: Sequence[str]) -> tuple[int, int]:
    for wanted, option in ((spec.url, "--url-column"), (spec.caption, "--caption-column")):
        if wanted not in names:
            raise UserError(f"{spec.path} has no column {wanted!r} but {', '.join(names)}; give it with {option} NAME")
    return names.index(spec.url), names.index(spec.caption)


def _parquet(spec: ListSpec) -> Iterator[tuple[Any, Any]]:
    with pq.ParquetFile(spec.path) as file:
        _columns(spec, file.schema_arrow.names)
        for batch in file.iter_batches(columns=[spec.url, spec.caption]):
            yield from zip(batch[spec.url].to_pylist(), batch[spec.caption].to_pylist(), strict=True)


def _values(path: Path) -> Iterator[tuple[str, Any]]:
    if path.name.endswith(".gz"):
        raise UserError(f"{path}: a compressed list of JSON is not read; unpack it first with gunzip")
    return stream_json(path)


def _json(spec: ListSpec) -> Iterator[tuple[Any, Any]]:
    for number, value in enumerate(_objects(spec.path)):
        if isinstance(value, Mapping):
            if number == 0:
                _columns(spec, list(value))
            yield value.get(spec.url), value.get(spec.caption)
        elif number == 0:
            raise UserError(
                f"{spec.path} cannot be read as {spec.format}: it holds neither a list nor lines of objects"
            )
        else:
            yield None, None


def _objects(path: Path) -> Iterator[Any]:
    with _open_text(path) as file:
        is_list = file.read(1000).lstrip().startswith("[")
    if is_list:
        yield from (value for _, value in _values(path))
    else:
        yield from (loads(line) for line in _lines(path) if line.strip())
