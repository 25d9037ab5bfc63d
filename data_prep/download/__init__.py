"""Downloads the pictures of a list of URLs, and makes checked shards of them with an account of what became of each.

`job.py` does it. The list is read once into a file (`asked.py`); img2dataset fetches its URLs, and once more those that
failed in a way that may pass (`tool.py`); what came is looked at, named by content and written by `data_prep.writer`.
Everything on the way lies in `OUT/.download-SPLIT` and is trusted where it is whole, so that the same command goes on
after any stop.
"""
