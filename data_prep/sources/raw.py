"""What the sources with raw files share: pictures inside a tar, checksums of files, seeded choices."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from data_prep.errors import UserError
from data_prep.files import sha256_file
from data_prep.tars import BadTar, list_members

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TarPictures:
    """Pictures that stay inside their tar; `places` has (offset, size) by member name."""

    path: Path
    places: dict[str, tuple[int, int]] = field(repr=False)

    @classmethod
    def of(cls, path: Path) -> "TarPictures":
        """Lists a tar.

        Raises:
            UserError: where it is truncated or not a tar.
        """
        try:
            members = list_members(path)
        except BadTar as error:
            raise UserError(f"{path}: {error}; fetch this file again") from error
        return cls(path=path, places={member.name: (member.data, member.size) for member in members})

    def read(self, names: Sequence[str]) -> list[bytes | None]:
        """Reads pictures by name; None for one that is not there."""
        out: list[bytes | None] = []
        with open(self.path, "rb") as file:
            for name in names:
                if name not in self.places:
                    out.append(None)
                    continue
                offset, size = self.places[name]
                file.seek(offset)
                out.append(file.read(size))
        return out


def checksums(root: Path, names: Sequence[str]) -> dict[str, str]:
    """The SHA-256 of raw files by name; the place they lie at does not matter."""
    return {name: sha256_file(root / name) for name in names}


def shuffled(things: Sequence[T], seed: str) -> list[T]:
    """The things in an order that follows from the seed alone, on every Python."""
    random_number = random.Random(seed).random
    return [thing for _, _, thing in sorted((random_number(), i, thing) for i, thing in enumerate(things))]


def lines_of(path: Path) -> list[str]:
    """The lines of a UTF-8 text file.

    Raises:
        UserError: where it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}); fetch this file again") from error
