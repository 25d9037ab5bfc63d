"""The words after `trimline shard` as the configuration reads them."""

from launch.commands import ShardConfig
from launch.reading import read_config
from launch.shard_words import gather_lists


def test_hyphens_do_for_underscores_save_in_the_names_of_splits() -> None:
    words = gather_lists(["--sizes.test-dev", "0", "--max-side", "9", "--out", "x", "--columns.keep", "a", "b"])
    config = read_config(ShardConfig, [], ["--name", "vqa", *words])
    assert (config.sizes, config.max_side, config.columns.keep) == ({"test-dev": 0}, 9, ("a", "b"))
