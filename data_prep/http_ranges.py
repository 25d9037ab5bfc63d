"""Byte ranges over http(s), with an eye on servers that stall, cut, ignore the range or answer with a page."""

import ipaddress
import os
import re
import time
import urllib.request
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, MaxRetryError, ResponseError

from data_prep.errors import UserError
from data_prep.patience import Passing

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_NO_RANGE = re.compile(r"bytes \*/(\d+)")
_CHUNK = 1 << 18
_BUSY = frozenset({408, 425, 429})
_BELIEVED = 3  # attempts after which an answer that makes no sense is believed
_SECOND_LOOK = 3.0  # seconds between them: a page that somebody's proxy shows for a moment stops no training
_CONNECTIONS = 32
_LARGEST = 1 << 30  # bytes of a whole file of unknown size; the index of 100,000 shards has 30 MB

INHERITED: list[object] = []
"""Connections that this process had from the one that forked it, and never closes: closing takes locks that a thread
over there may have held, and an event loop shares the kernel's list of what it waits for."""


class HttpRanges:
    """A folder of a web server; see `data_prep.remote.Ranges`.

    Attributes:
        from_start: Whether the server was found to ignore ranges, so that all before one must be read too.
    """

    def __init__(self, url: str, stall_seconds: float) -> None:
        """Connects to nothing yet.

        Args:
            url: Of the folder.
            stall_seconds: Time without a byte after which a connection is given up.
        """
        self._url = url
        self._stall_seconds = stall_seconds
        self._pool: tuple[int, urllib3.PoolManager] | None = None
        self.from_start = False

    def __getstate__(self) -> dict[str, Any]:
        """Connections stay behind."""
        return self.__dict__ | {"_pool": None}

    def splits(self) -> list[str]:
        """Never: a web server lists nothing.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{self._url} cannot be listed; name its folders with an index: --data.splits '[train, val]' (in YAML "
            "data: {splits: [train, val]})"
        )

    def attempt(self, name: str, begin: int, end: int | None, size: int | None, deadline: float) -> tuple[bytes, int]:
        """See `Ranges.attempt`."""
        headers = {"Accept-Encoding": "identity"}
        if end is not None:
            headers["Range"] = f"bytes={begin}-{end - 1}"
        where = f"{self._url}/{quote(name)}"
        connections = self._connections()
        try:
            response = connections.request(
                "GET",
                where,
                headers=headers,
                preload_content=False,
                retries=urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=5),
                timeout=urllib3.Timeout(connect=self._stall_seconds, read=self._stall_seconds),
            )
        except ValueError as error:  # not told in full: it may be where a redirection leads to, with a token
            raise UserError(f"{where} is no address that can be read, or leads to none") from error
        except MaxRetryError as error:
            loops = isinstance(error.reason, ResponseError)  # one place leads to the next
            raise Passing(_line(error.reason or error), tries=_BELIEVED if loops else None) from error
        except (HTTPError, OSError) as error:
            raise Passing(_line(error)) from error
        try:
            return self._answer(response, where, begin, end, size, deadline)
        except UserError:
            raise
        except (HTTPError, OSError, ValueError) as error:
            # ValueError: http.client on the size of a chunk that is no number, or on a closed connection.
            raise Passing(_line(error)) from error
        finally:
            response.close()  # an answer that was read to its end has given its connection back already

    def _answer(
        self,
        response: urllib3.BaseHTTPResponse,
        where: str,
        begin: int,
        end: int | None,
        size: int | None,
        deadline: float,
    ) -> tuple[bytes, int]:
        status = response.status
        if status == 206 and end is not None:
            if _encoding(response):
                # A range of other bytes than those of the file.
                raise _senseless(f"a range in the encoding {_encoding(response)}")
            total = _checked_range(response, begin, end, size)
            return _body(response, min(end, total) - begin, deadline), total
        if status == 200:
            return self._everything(response, begin, end, size, deadline)
        beyond = _NO_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if status == 416 and beyond:
            return b"", int(beyond[1])
        if status in _BUSY or status >= 500 or status < 400:
            raise Passing(f"the server answers {status} {response.reason}", pause=_pause(response))
        meaning = {401: "; check your access", 403: "; check your access", 404: "; copy it there again"}.get(status, "")
        raise UserError(f"{where}: the server answers {status} {response.reason}{meaning}")

    def _everything(
        self, response: urllib3.BaseHTTPResponse, begin: int, end: int | None, size: int | None, deadline: float
    ) -> tuple[bytes, int]:
        """An answer without a range: the whole file, or a page of a proxy or a login."""
        kind = response.headers.get("Content-Type", "")
        stated = response.headers.get("Content-Length", "")
        length = int(stated) if stated.isdecimal() and not _encoding(response) else None
        if "html" in kind or (size is not None and length is not None and length != size):
            what = f"{length if length is not None else 'some'} bytes of {kind or 'something'}"
            wanted = "a file" if size is None else f"the {size} bytes of the file"
            raise _senseless(f"{what}, not with {wanted}")
        if end is None:
            data = _body(response, length, deadline)
            return data, len(data) if length is None else length
        self.from_start = True
        data = _body(response, end - begin, deadline, skip=begin)
        if length is None and size is not None:
            _check_end(response, begin + len(data), size, deadline)
        return data, size if size is not None else begin + len(data)

    def _connections(self) -> urllib3.PoolManager:
        """The connections of this process; inherited ones would be shared with the one that forked it."""
        if self._pool is None or self._pool[0] != os.getpid():
            if self._pool is not None:
                INHERITED.append(self._pool)
            parts = urlsplit(self._url)
            proxy = urllib.request.getproxies().get(parts.scheme)
            direct = (
                proxy is None or _is_here(parts.hostname or "") or urllib.request.proxy_bypass(parts.hostname or "")
            )
            manager = urllib3.PoolManager(maxsize=_CONNECTIONS) if direct else _through(str(proxy))
            self._pool = os.getpid(), manager
        return self._pool[1]


def _checked_range(response: urllib3.BaseHTTPResponse, begin: int, end: int, size: int | None) -> int:
    """The file's size by the answer, which must be the range that was asked for."""
    stated = response.headers.get("Content-Range", "")
    found = _CONTENT_RANGE.fullmatch(stated.strip())
    fits = found and int(found[1]) == begin <= int(found[2])
    if not found or not fits or (found[3] != "*" and int(found[2]) >= int(found[3])):
        raise _senseless(f"the range {stated!r}, not {begin}-{end - 1}")
    if found[3] != "*":
        return int(found[3])
    return size if size is not None and size >= end else int(found[2]) + 1


def _encoding(response: urllib3.BaseHTTPResponse) -> str:
    """How the answer is packed, though none was asked for; empty where it is plain."""
    stated = response.headers.get("Content-Encoding", "").strip().lower()
    return "" if stated == "identity" else stated


def _body(response: urllib3.BaseHTTPResponse, wanted: int | None, deadline: float, skip: int = 0) -> bytes:
    """So many bytes of an answer behind those to skip, or all.

    read1 returns with whatever is there, so that a server that drips cannot make one call last for ever.
    """
    parts, place = list[bytes](), 0
    end = None if wanted is None else skip + wanted
    while end is None or place < end:
        if time.monotonic() > deadline:
            raise Passing(f"too slow: {place} of {'all' if end is None else end} bytes came in time")
        chunk = response.read1(_CHUNK if end is None else min(_CHUNK, end - place))
        if not chunk:
            break
        if place + len(chunk) > skip:
            parts.append(chunk[max(0, skip - place) :])
        place += len(chunk)
        if end is None and place > _LARGEST:
            raise Passing(f"more than {_LARGEST} bytes came", tries=1)
    if response.headers.get("Content-Length", "") == str(place):
        response.drain_conn()  # nothing is left; this gives the connection back for the next range
    return b"".join(parts)


def _check_end(response: urllib3.BaseHTTPResponse, place: int, size: int, deadline: float) -> None:
    """Reads an answer that states no length to its end: nothing else tells a file from a page."""
    while place <= size and (chunk := response.read1(_CHUNK)):
        place += len(chunk)
        if time.monotonic() > deadline:
            raise Passing(f"too slow: {place} of {size} bytes came in time")
    if place != size:
        found = "more than" if place > size else f"{place} bytes, not with"
        raise _senseless(f"{found} the {size} bytes of the file")


def _senseless(what: str) -> Passing:
    return Passing(f"the server answers with {what}", tries=_BELIEVED, pause=_SECOND_LOOK)


def _pause(response: urllib3.BaseHTTPResponse) -> float:
    """What Retry-After says in seconds; a date is not worth the trouble."""
    stated = response.headers.get("Retry-After", "")
    return float(stated) if stated.isdecimal() else 0.0


def _line(error: Exception) -> str:
    """An error in one line, without the connection object that urllib3 puts in front."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text.rpartition('>: ')[2] or text}"


def _through(proxy: str) -> urllib3.PoolManager:
    """Connections through a proxy, with the name and password of its address."""
    try:
        parts = urlsplit(proxy)
        user = None if parts.username is None else f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers = urllib3.make_headers(proxy_basic_auth=user)
        return urllib3.ProxyManager(proxy, proxy_headers=headers, maxsize=_CONNECTIONS)
    except ValueError as error:
        raise UserError("the proxy that the environment names (http_proxy, https_proxy) is none over http") from error


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
