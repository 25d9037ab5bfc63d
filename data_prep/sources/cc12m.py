"""CC12M, Conceptual 12M: URLs and captions; see `url_lists` for how they meet their pictures.

Format: Changpinyo et al., "Conceptual 12M" (CVPR 2021): `cc12m.tsv`, URL and caption with a tab between, no header.
"""

import functools

from data_prep.sources import published
from data_prep.sources.url_lists import CC12M as DATA

plan = functools.partial(published.plan, DATA)
