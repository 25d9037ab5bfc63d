"""What a captioner told on a split: scored as a corpus, and written as the server takes it."""

import json
from collections.abc import Sequence
from pathlib import Path

from data_prep.errors import UserError
from pipeline.data.batch import ImageTextBatch
from pipeline.metrics.captions import METRICS as CAPTION_METRICS
from pipeline.metrics.result_files import write_captions
from pipeline.metrics.tasks import Told, told_scores

WORD_ACCURACY = "word_accuracy"
"""The share of captions' words that are told rightly behind the right ones: the score of captions that no other program
counts, and that no server knows."""


class CaptionTally:
    """Captions that were told of pictures.

    Attributes:
        found: By picture.
        said: The annotators', of pictures that have some.
        domains: Of the pictures whose data set says how far they are from what was learned (NoCaps).
    """

    ending = ".json"
    metrics = (*CAPTION_METRICS, WORD_ACCURACY)
    kinds_of = ""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self.said: dict[str, list[str]] = {}
        self.domains: dict[str, str] = {}

    def add(self, batch: ImageTextBatch, told: Sequence[str]) -> None:
        """Takes a batch whose texts are the pictures' domains (`EveryImage`).

        Raises:
            UserError: Two pictures have one id.
        """
        for row, (own, known) in enumerate(zip(batch.ids, batch.told, strict=True)):
            name = str(known.get("number", own))  # the server knows no paths
            if name in self.found:
                raise UserError(f"{batch.keys[row]}: image {name!r} stands twice, so results cannot be told apart")
            self.found[name] = told[row]
            if batch.captions[row]:
                self.said[name] = batch.captions[row]
            if domain := json.loads(batch.texts[row])[:1]:
                self.domains[name] = str(domain[0])

    def scores(self) -> dict[str, Told]:
        """Scores of all pictures that annotators told of, as "", and of each domain, as a corpus of its own.

        Raises:
            UserError: pycocoevalcap or Java is missing.
        """
        there = {self.domains[name] for name in self.said if name in self.domains}
        wanted = {domain: [n for n in self.said if self.domains.get(n) == domain] for domain in there}
        groups = {"": list(self.said), **dict(sorted(wanted.items(), key=lambda each: _by_distance(each[0])))}
        return {domain: told_scores(self.found, self.said, names) for domain, names in groups.items() if names}

    def write(self, path: Path) -> None:
        """The server's results.json."""
        write_captions(path, self.found)


def _by_distance(domain: str) -> tuple[int, str]:
    """NoCaps' domains from near to far."""
    known = ("in-domain", "near-domain", "out-domain")
    return known.index(domain) if domain in known else len(known), domain
