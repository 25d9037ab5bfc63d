"""Keeps secrets out of what is written down: passwords and tokens in URLs, and the values of secret variables."""

import logging
import os
import re
from collections.abc import Mapping

MASK = "***"

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
# A password may hold a slash, as keys of S3 do, or an @ that was not escaped; what looks like a port ends the host.
_USER = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://([^/?#:@]*:(?!\d+/)[^?#@]*|[^/?#]*)@(?:[^/?#@]*@)*")
_PARAMETER = re.compile(r"([?&;])([^=&;?#\s]+)=([^&;#\s]*)")
_VARIABLES = frozenset(
    {"key", "apikey", "token", "secret", "password", "passwd", "passphrase", "credential", "credentials"}
)
_PATHS = frozenset({"path", "file", "dir", "folder", "credential", "credentials"})
_WORDS = _VARIABLES | {
    "accesskey", "accesskeyid", "accesstoken", "auth", "authorization", "awsaccesskeyid", "clientsecret",
    "googleaccessid", "jwt", "pwd", "sas", "sig", "signature",
}  # fmt: skip
_SHORTEST = 8  # a shorter value occurs in texts by chance, and is no secret worth the name


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """A text without the passwords and tokens of its URLs, and without the values of secret variables.

    Args:
        text: What is about to be written down.
        environment: Variables; those are secret whose names say so, as in WANDB_API_KEY.
    """
    for value in secret_values(environment):
        text = text.replace(value, MASK)
    return _URL.sub(lambda found: redact_url(found.group()), text)


class SafeFormatter(logging.Formatter):
    """Formats log records, tracebacks too, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        return redact(super().format(record))


def redact_url(url: str) -> str:
    """A URL with its password and the values of secret parameters masked; others stay as they are."""
    return _PARAMETER.sub(_masked_parameter, _USER.sub(_masked_user, url))


def has_secret(text: str) -> bool:
    """Whether a text holds a URL with a password or a token in it."""
    return any(redact_url(found.group()) != found.group() for found in _URL.finditer(text))


def secret_values(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The values of secret variables, longest first; paths are none, for files keep their own secrets."""
    named = ((name, value) for name, value in environment.items() if _has_word(name, _VARIABLES))
    values = {value for name, value in named if len(value) >= _SHORTEST and not _is_path(name, value)}
    return sorted(values, key=len)[::-1]


def _is_path(name: str, value: str) -> bool:
    """Whether a value names a file; a key of S3 may begin with a slash as well."""
    return value[0] in "/~." and (_has_word(name, _PATHS) or os.path.exists(os.path.expanduser(value)))


def _masked_user(found: re.Match[str]) -> str:
    """A name with a password goes; in front of a web address a name alone is a token as well.

    Elsewhere it may be a part of the address, as in abfss://container@account.
    """
    kind, user = found.groups()
    if ":" not in user and kind.lower() not in ("http", "https"):
        return found.group()
    return f"{kind}://{MASK}@"


def _masked_parameter(found: re.Match[str]) -> str:
    mark, name, _ = found.groups()
    return f"{mark}{name}={MASK}" if _has_word(name, _WORDS) else found.group()


def _has_word(name: str, words: frozenset[str]) -> bool:
    parts = re.split(r"[^a-z0-9]+", name.lower())
    return not words.isdisjoint(parts)
