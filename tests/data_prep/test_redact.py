"""What may not be written down, and what must stay readable."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.redact import has_secret, redact, redact_url, secret_values

KEPT = [
    "s3://bucket/folder",
    "https://host:8443/shards/train?version=3",
    "abfss://container@account.dfs.core.windows.net/shards",
    "git+ssh://git@host/project.git",
    "http://127.0.0.1:8265",
    "https://host:8443/pictures/a@2x.png",
    "no url at all: key=7, token=blue",
]
MASKED = [
    ("https://me:hunter2@host/shards", "https://***@host/shards"),
    ("https://me:hunter@2@host/a@2x.png", "https://***@host/a@2x.png"),
    ("https://ghp_0123456789@host/x.git", "https://***@host/x.git"),
    ("s3://AKIAXX:wJalrXUt/nFEMI@bucket", "s3://***@bucket"),
    ("s3://AKIAXX:wJalrXUt@bucket/train", "s3://***@bucket/train"),
    ("https://host/a?token=abc&page=2", "https://host/a?token=***&page=2"),
    ("https://host/a?page=2&X-Amz-Signature=ff00", "https://host/a?page=2&X-Amz-Signature=***"),
    ("https://host/a?sv=1&sig=ab%2Bc", "https://host/a?sv=1&sig=***"),
    ("https://host/a?access_token=abc#part", "https://host/a?access_token=***#part"),
]


@pytest.mark.parametrize("text", KEPT)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text, {}) == text
    assert not has_secret(text)


@pytest.mark.parametrize(("url", "masked"), MASKED)
def test_passwords_and_tokens_of_urls_are_masked(url: str, masked: str) -> None:
    assert redact_url(url) == masked
    assert redact(f"cannot read {url!r}, and '{url}'", {}) == f"cannot read {masked!r}, and '{masked}'"
    assert has_secret(f"--data.root={url}") == (url != masked)


def test_values_of_secret_variables_are_masked() -> None:
    environment = {
        "WANDB_API_KEY": "0123456789abcdef",
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG",
        "HF_TOKEN": "hf_0123456789",
        "MY_TOKEN": "blue",
        "KEYBOARD": "qwertyuiop",
        "GOOGLE_APPLICATION_CREDENTIALS": "/home/me/key.json",
        "HOME": "/home/me",
    }
    assert secret_values(environment) == ["wJalrXUtnFEMI/K7MDENG", "0123456789abcdef", "hf_0123456789"]
    text = "sent 0123456789abcdef of /home/me/key.json to hf_0123456789; qwertyuiop is blue"
    assert redact(text, environment) == "sent *** of /home/me/key.json to ***; qwertyuiop is blue"


def test_a_key_that_begins_like_a_path_is_a_key_unless_it_leads_to_a_file(tmp_path: Path) -> None:
    key, file = "/7MDENGbPxRfiCYEXAMPLEKEYwJalrXUtnFEMIK0", tmp_path / "some.key"
    file.touch()
    environment = {"AWS_SECRET_ACCESS_KEY": key, "RAY_AUTH_TOKEN_PATH": "/not/there/yet", "SSL_KEY": str(file)}
    assert secret_values(environment) == [key]


def test_a_secret_inside_a_longer_one_leaves_no_rest() -> None:
    environment = {"A_KEY": "0123456789", "B_KEY": "012345678901234"}
    assert redact("x012345678901234x", environment) == "x***x"


@given(st.text(), st.text(alphabet=st.characters(categories=["L", "N"]), min_size=8))
def test_no_secret_survives_wherever_it_stands(around: str, secret: str) -> None:
    environment = {"API_KEY": secret}
    assert secret not in redact(f"{around}{secret}{around}", environment).replace("***", "\0")
    assert redact(f"https://u:{secret}@h/x", {}) == "https://***@h/x"
