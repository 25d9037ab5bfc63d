import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.download.account import (
    GOT,
    GROUPS,
    UNANSWERED,
    account_lines,
    classify,
    in_groups,
    make_account,
    may_pass,
)
from data_prep.reasons import LeftOut


@pytest.mark.parametrize(
    ("message", "reason", "again"),
    [
        ("HTTP Error 404: Not Found", "gone: HTTP 404", False),
        ("HTTP Error 403: Forbidden", "gone: HTTP 403", False),
        ("HTTP Error 429: Too Many Requests", "server_error: HTTP 429", True),
        ("HTTP Error 503: Service Unavailable", "server_error: HTTP 503", True),
        ("HTTP Error 302: The HTTP server returned a redirect error that would lead to an infinite loop.\nFound",
         "gone: redirects without end", False),
        ("HTTP Error 302: Found - Redirection to url 'file:///etc/passwd' is not allowed",
         "refused: led to another scheme", False),
        ("<urlopen error unknown url type: ftp>", "refused: led to another scheme", False),
        ("<urlopen error timed out>", "timeout: no answer", True),
        ("The read operation timed out", "timeout: no answer", True),
        ("trimline: took too long", "timeout: took too long", True),
        ("<urlopen error trimline: address is not public>", "refused: address not public", False),
        ("trimline: too many bytes", "refused: too many bytes", False),
        ("<urlopen error [Errno -2] Name or service not known>", "gone: host not found", False),
        ("<urlopen error [Errno -3] Temporary failure in name resolution>",
         "connection: name service did not answer", True),
        ("<urlopen error [Errno 111] Connection refused>", "connection: refused", True),
        ("IncompleteRead(100 bytes read, 20 more expected)", "connection: ended early", True),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed>", "tls", True),
        ("Use of image disallowed by X-Robots-Tag directive", "refused: X-Robots-Tag", False),
        ("something never seen", "other", True),
        (None, "other", True),
    ],
)  # fmt: skip
def test_every_failure_has_a_reason_and_says_whether_it_may_pass(message, reason, again):
    assert classify("failed_to_download", message) == reason
    assert may_pass(reason) is again


def test_success_is_got_and_what_was_lost_is_asked_again():
    assert classify("success", None) == GOT
    assert not may_pass(GOT)
    assert may_pass(UNANSWERED)


def test_every_reason_of_the_writer_has_its_group():
    assert {in_groups(reason).partition(":")[0] for reason in LeftOut} <= set(GROUPS) - {"other"}
    assert in_groups("picture too small") == "too_small"
    assert in_groups("picture too large") == "refused: picture too large"


@given(st.text(max_size=80))
def test_any_message_falls_into_a_known_group(message):
    assert classify("failed_to_download", message).partition(":")[0] in GROUPS
    assert in_groups(message).partition(":")[0] in GROUPS


def test_the_account_adds_up_and_says_what_it_means():
    account = make_account(10, 4, {"gone: HTTP 404": 3, "gone: HTTP 410": 1, "too_small": 2, "tls": 0})
    assert account["got"] + sum(account[group] for group in GROUPS) == account["asked"] == 10
    assert (account["gone"], account["too_small"], account["share"]) == (4, 2, 0.4)
    lines = account_lines(account)
    assert lines[0] == "4 of 10 lines of the list became pictures (40.0%)"
    assert lines[1].split() == ["gone", "4", "HTTP", "404", "3,", "HTTP", "410", "1"]
    assert lines[2].split() == ["too", "small", "2"]
    assert "40 to 70%" in lines[3]


def test_a_good_share_needs_no_comfort():
    assert len(account_lines(make_account(10, 10, {}))) == 1


@pytest.mark.parametrize("reasons", [{"gone: HTTP 404": 5}, {"nonsense": 6}])
def test_an_account_that_does_not_add_up_is_an_error_of_ours(reasons):
    with pytest.raises(RuntimeError, match="does not add up"):
        make_account(10, 4, reasons)
