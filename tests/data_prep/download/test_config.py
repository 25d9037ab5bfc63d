import pytest

from data_prep.download.config import DownloadConfig
from data_prep.errors import UserError


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"retries": -1}, "--retries -1 must be from 0 to 20"),
        ({"threads": 0}, "--threads 0 must be from 1"),
        ({"processes": 0}, "--processes 0"),
        ({"timeout": 0}, "--timeout 0"),
        ({"max_mib": 5000}, "--max-mib 5000"),
        ({"min_side": 0}, "--min-side 0"),
        ({"max_side": 20}, "--max-side 20 is below --min-side 32"),
        ({"shard_urls": 0}, "--shard-urls 0"),
        ({"format": "laion"}, "--format laion is not known; use auto or one of cc3m"),
        ({"split": "../x"}, "--split '../x' must be"),
        ({"name": "a b"}, "--name 'a b' must be"),
        ({"out": "s3://bucket/x"}, "a folder on this machine is wanted"),
        ({"out": "data[1]"}, "--out data[1]: img2dataset takes"),
        ({"out": "a::b"}, "--out a::b: img2dataset takes"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(wrong, said):
    with pytest.raises(UserError) as caught:
        DownloadConfig(**{"list": "l.tsv", "out": "o", **wrong})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
