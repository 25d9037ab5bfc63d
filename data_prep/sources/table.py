"""A table of your own: CSV, TSV or Parquet, with a column of picture names and one of captions.

Format: CSV as in RFC 4180; TSV the same with tabs; both UTF-8, with a header unless `columns.names` names the columns.
Rows of one picture become one sample.
"""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.csv_rows import csv_rows
from data_prep.entries import Entry, one_line, sentences
from data_prep.errors import UserError
from data_prep.grouping import Groups
from data_prep.members import FIELDS
from data_prep.sources import ColumnsConfig, published
from data_prep.sources.published import Annotation, DataSet, Expected, Layout, Request

_SPLIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_TAKEN = FIELDS | {"changed", "originals"}


def table_rows(path: Path, columns: ColumnsConfig) -> Iterator[dict[str, Any] | None]:
    """The rows of a table as {column: value}, with the wanted columns at least; None for a malformed row.

    Raises:
        UserError: the file is no table, or has no such column.
    """
    wanted = [columns.image, columns.caption, *columns.keep]
    wanted += [name for name in (columns.id, columns.split) if name]
    if path.suffix.lower() in (".parquet", ".pq"):
        return _parquet_rows(path, wanted)
    return _text_rows(path, wanted, columns)


def _check(path: Path, wanted: list[str], found: list[str]) -> None:
    missing = [name for name in wanted if name not in found]
    if missing and not found:
        raise UserError(f"{path} is empty: its first line names no columns; give a table with a line of names first")
    if missing:
        raise UserError(
            f"{path} has no column {missing[0]!r} but {', '.join(map(repr, found))[:300]}; say which is which with "
            "--columns.image NAME --columns.caption NAME"
        )


def _parquet_rows(path: Path, wanted: list[str]) -> Iterator[dict[str, Any] | None]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check(path, wanted, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=1024, columns=sorted(set(wanted))):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is no whole Parquet file ({error}); fetch or write it again") from error


def _text_rows(path: Path, wanted: list[str], columns: ColumnsConfig) -> Iterator[dict[str, Any] | None]:
    rows = csv_rows(path, "\t" if path.suffix.lower() in (".tsv", ".tab") else ",")
    first = None if columns.names else next(rows, None)
    header = list(columns.names) or first or []
    _check(path, wanted, header)
    for row in rows:
        yield dict(zip(header, row, strict=True)) if row is not None and len(row) == len(header) else None


def _splits(request: Request) -> tuple[str, ...]:
    column = request.config.columns.split
    if column is None:
        return tuple(dict.fromkeys(file.split or "train" for file in request.files))
    found = dict[str, None]()
    for file in request.files:
        stamp = file.path.stat()
        found |= dict.fromkeys(_split_values(file.path, stamp.st_mtime_ns, stamp.st_size, request.config.columns))
    return tuple(found)


@functools.lru_cache(maxsize=16)
def _split_values(path: Path, _changed: int, _size: int, columns: ColumnsConfig) -> tuple[str, ...]:
    """The splits that a table names; remembered, for it reads the whole table."""
    values = {_text(row[columns.split or ""]) for row in table_rows(path, columns) if row is not None}
    return tuple(sorted(value for value in values if _SPLIT.fullmatch(value)))


def _text(value: Any) -> str:
    """A number or text as text; "" for the null of Parquet."""
    return "" if value is None else str(value)


def _read(request: Request) -> Iterator[Entry]:
    columns = request.config.columns
    clash = sorted(_TAKEN & set(columns.keep))
    if clash:
        raise UserError(f"columns.keep={clash[0]} is a name that every sample has already; rename the column")
    with Groups(Path(request.config.cache or ".")) as groups:
        for file in request.files:
            for number, row in enumerate(table_rows(file.path, columns), start=1):
                split = _split_of(file, row, columns)
                if row is None or split is None or not one_line(row[columns.image]):
                    yield Entry(split=split or _splits(request)[0], id=f"{file.path.name} {number}", skip=_FAULT)
                else:
                    name = one_line(row[columns.image])
                    groups.add(f"{split}/{name}", [split, name, row])
        for values in groups:
            yield _entry(values[0][0], values[0][1], [row for _, _, row in values], columns)


_FAULT = "malformed record"


def _split_of(file: Annotation, row: dict[str, Any] | None, columns: ColumnsConfig) -> str | None:
    if columns.split is None:
        return file.split or "train"
    value = "" if row is None else _text(row[columns.split])
    return value if _SPLIT.fullmatch(value) else None


def _entry(split: str, name: str, rows: list[dict[str, Any]], columns: ColumnsConfig) -> Entry:
    captions = dict.fromkeys(line for row in rows for line in sentences(row[columns.caption]))
    own = one_line(_text(rows[0][columns.id])) if columns.id else ""
    return Entry(
        split=split,
        id=own or name,
        key=own or name.rpartition("/")[2].rpartition(".")[0] or name,
        pictures={"": [name]},
        captions=list(captions),
        skip=None if captions else "no caption",
        fields={column: _value(rows[0][column]) for column in columns.keep},
    )


def _value(value: Any) -> Any:
    """Dates and bytes of Parquet as text; what JSON knows as it is."""
    return value if isinstance(value, str | int | float | bool | list | dict | None) else str(value)


DATA = DataSet(
    name="table",
    title="a CSV, TSV or Parquet of your own, with a column of picture names and one of captions",
    layouts=(
        Layout(
            name="tables",
            files=(Expected(names=("*.csv", "*.tsv", "*.parquet"), what="your own"),),
        ),
    ),
    pictures=(Expected(names=("images",), what="what the names lead to: folders, tars or zips"),),
    splits_of=_splits,
    read=_read,
    match=None,
    options=("columns",),
    notes="All rows are one split, train, unless --annotations SPLIT=FILE or --columns.split NAME says otherwise. With "
    "--match path the folders that a name and the pictures share must agree, with --match name the file name decides.",
)
plan = functools.partial(published.plan, DATA)
