"""The opener that img2dataset asks through, against a real server; each limit is a fraction of a second here."""

import shutil
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.download import guard
from data_prep.download.account import classify
from tests.data_prep.download.server import _Server, encoded, serving


@pytest.fixture(scope="module")
def server() -> Iterator[_Server]:
    with serving() as server:
        yield server


@pytest.fixture
def limited() -> Iterator[None]:
    guard.install(seconds=0.6, max_bytes=200_000, public_only=False)
    yield
    urllib.request.install_opener(urllib.request.build_opener())


def why(url: str, timeout: float = 0.4) -> str:
    """The reason that img2dataset's error message, which is `str(error)`, is counted under."""
    with pytest.raises(Exception) as caught:
        urllib.request.urlopen(url, timeout=timeout).read()
    return classify("failed_to_download", str(caught.value))


def test_good_answers_pass_through_redirects_too(server, limited):
    for what in ("good", "redirect"):
        with urllib.request.urlopen(f"{server.url}/{what}/7.jpg", timeout=5) as answer:
            assert answer.headers["Content-Type"] == "image/jpeg"
            assert answer.read() == encoded(7)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("stall", "timeout: no answer"),
        ("stallbody", "timeout: no answer"),
        ("trickle", "timeout: took too long"),
        ("headers", "timeout: took too long"),
        ("endless", "refused: too many bytes"),
        ("huge", "refused: too many bytes"),
        ("short", "connection: ended early"),
        ("close", "connection: closed without an answer"),
        ("loop", "gone: redirects without end"),
        ("tofile", "refused: led to another scheme"),
        ("toftp", "refused: led to another scheme"),
        ("status404", "gone: HTTP 404"),
        ("status429", "server_error: HTTP 429"),
    ],
)
def test_no_server_holds_a_thread_or_fills_the_memory(server, limited, what, reason):
    began = time.monotonic()
    assert why(f"{server.url}/{what}/1.jpg") == reason
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x"])
def test_other_schemes_are_never_opened(limited, url):
    assert why(url) == "refused: led to another scheme"


def test_addresses_that_are_not_public_are_not_asked(server, limited):
    guard.install(seconds=1, max_bytes=10**6, public_only=True)
    before = server.seen.total()
    # However a URL spells its host: a percent sign is no proxy's doing.
    for host in ("127.0.0.1", "localhost", "0.0.0.0", "%31%32%37.0.0.1", "l%6Fcalhost"):
        assert why(f"http://{host}:{server.server_address[1]}/good/1.jpg") == "refused: address not public"
    assert why("http://169.254.169.254/latest/meta-data") == "refused: address not public"
    assert why("https://10.0.0.1/x.jpg") == "refused: address not public"
    assert server.seen.total() == before


def test_a_name_that_changes_its_address_between_the_look_and_the_call_leads_nowhere(server, limited, monkeypatch):
    guard.install(seconds=1, max_bytes=10**6, public_only=True)
    asked: list[str] = []

    def lookup(host: str, port: int, *_: object, **__: object) -> list[tuple[object, ...]]:
        asked.append(host)
        address = "192.88.99.1" if asked == ["rebinding.example"] else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    def connect(address: tuple[str, int], *_: object, **__: object) -> socket.socket:
        reached.append(address[0])
        raise ConnectionRefusedError(111, "Connection refused")

    reached: list[str] = []
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(socket, "create_connection", connect)
    assert why(f"http://rebinding.example:{server.server_address[1]}/good/1.jpg") == "connection: refused"
    assert (asked, reached) == (["rebinding.example"], ["192.88.99.1"])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not there")
    folder = tmp_path_factory.mktemp("tls")
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    files = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(["openssl", *words.split(), *files], cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


def test_https_is_held_to_the_same_limits_and_its_certificates_are_checked(certificate, limited, monkeypatch):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with serving(context=context) as server:
        url = server.url.replace("http:", "https:")
        assert why(f"{url}/good/1.jpg") == "tls"
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        guard.install(seconds=0.6, max_bytes=200_000, public_only=False)
        with urllib.request.urlopen(f"{url}/good/7.jpg", timeout=5) as answer:
            assert answer.read() == encoded(7)
        assert why(f"{url}/trickle/1.jpg") == "timeout: took too long"
        assert why(f"{url}/endless/1.jpg") == "refused: too many bytes"
        guard.install(seconds=0.6, max_bytes=200_000, public_only=True)
        assert why(f"{url}/good/1.jpg") == "refused: address not public"


def test_a_proxy_of_the_users_own_may_be_private(server, limited, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    guard.install(seconds=1, max_bytes=10**6, public_only=True)
    # The server is no proxy, so it does not understand the path; that it was asked is what counts.
    assert why("http://example.org/good/1.jpg") == "connection: closed without an answer"
    assert server.seen["http://example.org/good/1.jpg"] == 1


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("192.168.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("::127.0.0.1", False),
        ("2002:7f00:1::", False),
        ("2002:808:808::", True),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b::808:808", True),
        ("64:ff9b:1::a00:1", False),
        ("fec0::1", False),
    ],
)
def test_which_addresses_are_public(address, public):
    assert guard.is_public(address) is public
