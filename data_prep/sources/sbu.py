"""SBU Captioned Photos: URLs and captions; see `url_lists` for how they meet their pictures.

Format: Ordonez, Kulkarni and Berg, "Im2Text" (NIPS 2011): `sbu-captions-all.json`, {"image_urls": [...], "captions":
[...], "user_ids": [...]}, or the older two text files whose lines belong together.
"""

import functools

from data_prep.sources import published
from data_prep.sources.url_lists import SBU as DATA

plan = functools.partial(published.plan, DATA)
