"""Captions and images into checked WebDataset shards; needs neither torch, ray nor a GPU."""
