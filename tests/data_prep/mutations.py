"""Damage to bytes, drawn by seed or by hypothesis: what disks, networks and people do to files."""

from dataclasses import dataclass

from hypothesis import strategies as st

KINDS = ("overwrite", "zero", "delete", "insert", "cut", "flip", "repeat")


@dataclass(frozen=True)
class Mutation:
    kind: str
    place: float
    """Where, as a share of the file."""
    size: int
    seed: int

    def apply(self, data: bytes) -> bytes:
        at = int(self.place * len(data))
        size = min(self.size, len(data) - at)
        noise = (self.seed.to_bytes(8, "big") * (size // 8 + 1))[:size]
        return {
            "overwrite": data[:at] + noise + data[at + size :],
            "zero": data[:at] + bytes(size) + data[at + size :],
            "delete": data[:at] + data[at + size :],
            "insert": data[:at] + noise + data[at:],
            "cut": data[:at],
            "flip": data[:at] + bytes([data[at] ^ (1 << self.seed % 8)]) + data[at + 1 :] if data[at:] else data,
            "repeat": data[: at + size] + data[at:],
        }[self.kind]

    def touches(self, begin: int, end: int, total: int) -> bool:
        """Whether any byte of a stretch of the file is changed or moved apart."""
        at = int(self.place * total)
        size = {"insert": 0, "repeat": 0, "flip": 1, "cut": total - at}.get(self.kind, self.size)
        return (begin < at < end) if size == 0 else (at < end and begin < at + size)


def mutations(largest: int = 6000) -> st.SearchStrategy[Mutation]:
    return st.builds(
        Mutation,
        kind=st.sampled_from(KINDS),
        place=st.floats(0, 1, exclude_max=True),
        size=st.integers(1, largest),
        seed=st.integers(0, 2**64 - 1),
    )
