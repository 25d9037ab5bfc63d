"""Runs img2dataset in its own environment, with limits on every answer; started by `data_prep.download.tool`.

usage: python -I guard.py SETTINGS.json

img2dataset asks with `urllib.request.urlopen`, which goes through the opener that is installed here. Without it a
server that sends a byte now and then holds a thread for ever (a live camera does), one that never stops fills the
memory, and a redirect reaches the machine's own network. Its processes are spawned: each runs this module again.

This file is no part of the package while it runs: it imports the standard library and img2dataset only.
"""

import http.client
import importlib
import io
import ipaddress
import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from typing import Any

# Each begins the message of an error, by which `account.py` knows it again.
TOO_SLOW = "trimline: took too long"
TOO_MUCH = "trimline: too many bytes"
NOT_PUBLIC = "trimline: address is not public"


class Limits:
    """What every answer is held to; set once, before the first request.

    Attributes:
        seconds: From the request to the last byte, for each step of a redirect.
        bytes: Headers and body together.
        public_only: Whether loopback, private and other special addresses are refused.
    """

    seconds = 60.0
    bytes = 64 * 2**20
    public_only = True


class _LimitedRaw(io.RawIOBase):
    """A socket's bytes, up to the limits; each single wait has the socket's own time limit besides."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self._ends = time.monotonic() + Limits.seconds
        self._left = Limits.bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if time.monotonic() > self._ends:
            raise TimeoutError(TOO_SLOW)
        count = self._raw.readinto(buffer)
        self._left -= count or 0
        if self._left < 0:
            raise OSError(TOO_MUCH)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """An answer whose headers and body are held to the limits."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_LimitedRaw(self.fp.detach()), 65536)

    def begin(self) -> None:
        super().begin()
        # Reading would ask for a buffer of the length that was promised.
        if self.length is not None and self.length > Limits.bytes:
            raise OSError(TOO_MUCH)


_CARRIES_IPV4 = tuple(map(ipaddress.ip_network, ("::ffff:0:0/96", "::/96", "64:ff9b::/96")))
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the open internet; one that leads to an IPv4 address is judged by that one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.is_site_local or ip in _LOCAL_NAT64:
            return False
        if ip.sixtofour is not None:
            ip = ip.sixtofour
        elif any(ip in network for network in _CARRIES_IPV4):
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.is_global and not ip.is_multicast


class _Limited(http.client.HTTPConnection):
    response_class = _Response


def _connect_public(address: tuple[str, int], timeout: Any = None, source_address: Any = None) -> socket.socket:
    """As `socket.create_connection`, but to public addresses only.

    The name is looked up once: the address that was judged is the one that is asked, for a name may change its address.
    """
    host, port = address
    found = [str(sockaddr[0]) for *_, sockaddr in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not all(map(is_public, found)):
        raise OSError(NOT_PUBLIC)
    for number, place in enumerate(found, start=1):
        try:
            return socket.create_connection((place, port), timeout, source_address)
        except OSError:
            if number == len(found):
                raise
    raise OSError("getaddrinfo returns an empty list")


class _Public(_Limited):
    """A connection to a public address only."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._create_connection = _connect_public  # where http.client lets others open its sockets


def _guarded(kind: Any, request: urllib.request.Request) -> Any:
    """The connection class for a request; a proxy looks names up itself, and is the user's own choice."""
    # Not by comparing names: a URL may spell its host in many ways, such as %31%32%37.0.0.1.
    by_proxy = request.has_proxy() or getattr(request, "_tunnel_host", None) is not None
    guard = _Public if Limits.public_only and not by_proxy else _Limited
    return type(f"Guarded{kind.__name__}", (guard, kind), {})


class _HTTPHandler(urllib.request.HTTPHandler):
    def do_open(self, http_class: Any, req: urllib.request.Request, **http_conn_args: Any) -> http.client.HTTPResponse:
        return super().do_open(_guarded(http_class, req), req, **http_conn_args)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def do_open(self, http_class: Any, req: urllib.request.Request, **http_conn_args: Any) -> http.client.HTTPResponse:
        return super().do_open(_guarded(http_class, req), req, **http_conn_args)


def install(seconds: float, max_bytes: int, public_only: bool) -> None:
    """Sets the limits, and an opener for http and https alone: no file:, ftp: or data:, not by a redirect either."""
    Limits.seconds, Limits.bytes, Limits.public_only = seconds, max_bytes, public_only
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        _HTTPHandler(),
        _HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    urllib.request.install_opener(opener)


def _die_with_parent() -> None:
    """Ends this process and its children when the other end of stdin closes: whoever started us is gone."""
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def _main(settings: dict[str, Any]) -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    importlib.import_module("img2dataset").download(**settings["img2dataset"])


if __name__ in ("__main__", "__mp_main__"):
    with open(sys.argv[1], encoding="utf-8") as file:
        _settings = json.load(file)
    install(**_settings["limits"])
    if __name__ == "__main__":
        _main(_settings)
