"""The words for why the writer leaves a sample out: every account of shards counts under these."""

from enum import StrEnum


class LeftOut(StrEnum):
    """Why a sample that a source gave is in no shard; a source's own reasons (`Skipped`) are free words."""

    NOT_A_PICTURE = "not a JPEG, PNG or WebP picture"
    BROKEN = "broken picture"
    TOO_LARGE = "picture too large"
    TOO_SMALL = "picture too small"
    TOO_STRETCHED = "picture too stretched"
    DUPLICATE = "duplicate picture"
    EXCLUDED_ID = "excluded by id"
    EXCLUDED_CHECKSUM = "excluded by checksum"
    NO_CAPTION = "no caption"


UNASKED = frozenset(
    {"answers without a question", "caption of a picture that is not listed", "no gold label", "no question"}
)
"""Reasons of sources for entries that ask nothing: no server waits for an answer to them."""
