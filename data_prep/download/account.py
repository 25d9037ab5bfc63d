"""Says in a few fixed words why a picture was not got, and adds up what became of everything that was asked for."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from data_prep.download.guard import NOT_PUBLIC, TOO_MUCH, TOO_SLOW
from data_prep.reasons import LeftOut

GOT = "got"
UNANSWERED = "other: no word from img2dataset"
"""What a picture starts with, and keeps where img2dataset lost it."""

GROUPS = (
    "gone",
    "server_error",
    "connection",
    "timeout",
    "tls",
    "not_an_image",
    "too_small",
    "duplicate",
    "refused",
    "other",
)
"""Every reason is a group, or a group, a colon and a detail; `write_account` sums by them."""

_HTTP = re.compile(r"HTTP Error (\d{3})\b")
# Busy now, and asked for another try: those of 4xx that may come right by themselves.
_PASSING = frozenset({408, 425, 429})
_WORDS: tuple[tuple[str, str], ...] = (
    (NOT_PUBLIC, "refused: address not public"),
    (TOO_MUCH, "refused: too many bytes"),
    (TOO_SLOW, "timeout: took too long"),
    ("X-Robots-Tag", "refused: X-Robots-Tag"),
    ("unknown url type", "refused: led to another scheme"),
    ("timed out", "timeout: no answer"),
    ("IncompleteRead", "connection: ended early"),
    ("Name or service not known", "gone: host not found"),
    ("nodename nor servname", "gone: host not found"),
    ("No address associated", "gone: host not found"),
    ("Temporary failure in name resolution", "connection: name service did not answer"),
    ("Connection refused", "connection: refused"),
    ("reset by peer", "connection: reset"),
    ("Remote end closed connection", "connection: closed without an answer"),
    ("unreachable", "connection: no route"),
    ("No route to host", "connection: no route"),
    ("SSL", "tls"),
    ("certificate", "tls"),
    ("InvalidURL", "refused: malformed URL"),
    ("URL can't contain", "refused: malformed URL"),
    ("nonnumeric port", "refused: malformed URL"),
    ("label empty or too long", "refused: malformed URL"),
)
_WORTH_ANOTHER_TRY = ("server_error", "connection", "timeout", "tls", "other")


def classify(status: str, message: str | None) -> str:
    """The reason for one picture, from img2dataset's own status and error message; `GOT` where there is none."""
    if status == "success":
        return GOT
    text = message or ""
    if "is not allowed" in text:  # urllib refuses a redirect to file: with the redirect's own code
        return "refused: led to another scheme"
    if found := _HTTP.match(text):
        code = int(found[1])
        if 300 <= code < 400:
            return "gone: redirects without end"
        return f"{'gone' if 400 <= code < 500 and code not in _PASSING else 'server_error'}: HTTP {code}"
    return next((reason for words, reason in _WORDS if words in text), "other")


def may_pass(reason: str) -> bool:
    """Whether another try may bring what this reason kept away; what is gone, refused or no picture stays so."""
    return reason.partition(":")[0] in _WORTH_ANOTHER_TRY


_WRITER_GROUPS = {
    LeftOut.NOT_A_PICTURE: "not_an_image",
    LeftOut.BROKEN: "not_an_image",
    LeftOut.TOO_LARGE: "refused",
    LeftOut.TOO_SMALL: "too_small",
    LeftOut.TOO_STRETCHED: "refused",
    LeftOut.DUPLICATE: "duplicate",
    LeftOut.EXCLUDED_ID: "refused",
    LeftOut.EXCLUDED_CHECKSUM: "refused",
    LeftOut.NO_CAPTION: "refused",
}
"""The group of every reason that the writer has."""


def in_groups(reason: str) -> str:
    """A reason that the writer of the shards counts under, as one of a group."""
    if reason.partition(":")[0] in GROUPS:
        return reason
    if reason not in set(LeftOut):
        return f"other: {reason}"
    group = _WRITER_GROUPS[LeftOut(reason)]
    return group if group == "too_small" else f"{group}: {reason}"  # which says it all


def make_account(asked: int, written: int, reasons: Mapping[str, int]) -> dict[str, Any]:
    """Adds everything up.

    Args:
        asked: Lines of the list.
        written: Pictures in the shards.
        reasons: How many lines came to nothing, by reason; each begins with one of `GROUPS`.

    Returns:
        {"asked", "got", then for each group its sum, "share": got / asked, "reasons": {reason: count}}; got and the
        groups add up to asked.
    """
    counts = Counter({reason: count for reason, count in reasons.items() if count})
    groups = Counter[str]()
    for reason, count in counts.items():
        groups[reason.partition(":")[0]] += count
    unknown = set(groups) - set(GROUPS)
    if unknown or written + groups.total() != asked:
        raise RuntimeError(f"the account does not add up: {asked=} {written=} {dict(counts)}")
    share = round(written / asked, 4) if asked else 0.0
    ordered = dict(sorted(counts.items(), key=lambda item: (GROUPS.index(item[0].partition(":")[0]), -item[1])))
    return {"asked": asked, GOT: written, **{name: groups[name] for name in GROUPS}, "share": share, "reasons": ordered}


def account_lines(account: Mapping[str, Any]) -> list[str]:
    """The account as words for people: the share first, then each group with its details."""
    lines = [f"{account[GOT]:,} of {account['asked']:,} lines of the list became pictures ({account['share']:.1%})"]
    for group in GROUPS:
        if account[group]:
            inner = {
                reason.partition(": ")[2] or "no details": count
                for reason, count in account["reasons"].items()
                if reason.partition(":")[0] == group
            }
            lines.append(f"  {group.replace('_', ' '):<13}{account[group]:>9,}  {_details(inner)}".rstrip())
    if account["share"] < 0.7:
        lines.append("  links die: 40 to 70% of CC3M is what people get today; runs and reports show this count")
    return lines


def _details(inner: Mapping[str, int]) -> str:
    if set(inner) == {"no details"}:
        return ""
    shown = [f"{name} {count:,}" for name, count in list(inner.items())[:4]]
    return ", ".join(shown) + (", ..." if len(inner) > 4 else "")
