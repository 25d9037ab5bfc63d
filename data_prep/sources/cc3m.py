"""CC3M, Conceptual Captions: captions and URLs; see `url_lists` for how they meet their pictures.

Format: Sharma et al., "Conceptual Captions" (ACL 2018): `Train_GCC-training.tsv` and
`Validation_GCC-1.1.0-Validation.tsv`, caption and URL with a tab between, no header.
"""

import functools

from data_prep.sources import published
from data_prep.sources.url_lists import CC3M as DATA

plan = functools.partial(published.plan, DATA)
