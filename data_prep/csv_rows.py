"""The rows of CSV and TSV files, in flat memory."""

import csv
from collections.abc import Iterator
from pathlib import Path

from data_prep.json_stream import text_lines


def csv_rows(path: Path, delimiter: str = ",") -> Iterator[list[str] | None]:
    """The rows that are not empty, quoted as RFC 4180 has it.

    Yields:
        The fields of a row; None for one that is malformed, or not UTF-8.

    Raises:
        UserError: where the file is no text at all.
    """
    # A line that is no UTF-8 becomes a zero byte, which no good row holds.
    lines = ("\0\n" if line is None else f"{line}\n" for _, line in text_lines(path))
    rows = csv.reader(lines, delimiter=delimiter)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error:
            yield None
            continue
        if row:
            yield None if any("\0" in value for value in row) else row
