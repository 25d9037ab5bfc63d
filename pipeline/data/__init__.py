"""From shards on disk to batches on this rank: order, reading, decoding, augmenting, tokenising."""
