from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.keys import DIGEST_BYTES, KeyFile, digest


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from("abcdefgh"), max_size=40), st.integers(1, 9))
def test_repeated_keys_are_found_however_few_fit_into_memory(keys, at_once):
    with KeyFile(at_once) as file:
        for start in range(0, len(keys), 7):
            file.add(b"".join(map(digest, keys[start : start + 7])))
        found = sorted(positions.tolist() for positions in file.repeated())
    counted = Counter(keys)
    assert found == sorted([n for n, key in enumerate(keys) if key == one] for one in counted if counted[one] > 1)
    assert len(file) == len(keys)


def test_a_key_may_hold_half_a_character():
    assert len(digest("\ud800")) == DIGEST_BYTES
