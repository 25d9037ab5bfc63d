"""A web server on the loopback that does everything that servers of old lists do."""

import contextlib
import io
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image


def encoded(number: int, side: int = 48, kind: str = "JPEG") -> bytes:
    """A picture of its own for each number."""
    coarse = np.random.default_rng(number).integers(0, 255, (6, 6, 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((side, side + 16)).save(out, kind)
    return out.getvalue()


class _Handler(BaseHTTPRequestHandler):
    """`/WHAT/NUMBER.EXTENSION` gets what `do_WHAT` does."""

    server: "_Server"

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.seen[self.path] += 1
        what, number = re.fullmatch(r"/([a-z]+\d*)/(\d+)\.\w+", self.path).groups()
        with contextlib.suppress(ConnectionError):
            if found := re.fullmatch(r"status(\d+)", what):
                self.send_error(int(found[1]))
            else:
                getattr(self, f"do_{what}")(int(number))

    def send(self, data: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def redirect(self, where: str) -> None:
        self.send_response(302)
        self.send_header("Location", where)
        self.end_headers()

    def do_good(self, number: int) -> None:
        time.sleep(self.server.delay)
        self.send(encoded(number))

    def do_png(self, number: int) -> None:
        self.send(encoded(number, kind="PNG"))

    def do_webp(self, number: int) -> None:
        self.send(encoded(number, kind="WEBP"))

    def do_gif(self, number: int) -> None:
        self.send(encoded(number, kind="GIF"))

    def do_big(self, number: int) -> None:
        self.send(encoded(number, side=400))

    def do_small(self, number: int) -> None:
        self.send(encoded(number, side=20))

    def do_same(self, _: int) -> None:
        self.send(encoded(999_999))

    def do_html(self, _: int) -> None:
        self.send(b"<html><body>This picture has moved.</body></html>" * 10)

    def do_cut(self, number: int) -> None:
        data = encoded(number)
        self.send(data[: len(data) * 2 // 3])

    def do_bigcut(self, number: int) -> None:
        data = encoded(number, side=400)
        self.send(data[: len(data) * 2 // 3])

    def do_short(self, number: int) -> None:
        data = encoded(number)
        self.send(data, length=len(data) + 1000)

    def do_huge(self, _: int) -> None:
        self.send(b"\xff\xd8\xff", length=10**12)

    def do_empty(self, _: int) -> None:
        self.send(b"")

    def do_close(self, _: int) -> None:
        self.close_connection = True

    def do_robots(self, number: int) -> None:
        self.send(encoded(number), X_Robots_Tag="noai")

    def do_redirect(self, number: int) -> None:
        self.redirect(f"/good/{number}.jpg")

    def do_loop(self, _: int) -> None:
        self.redirect(self.path)

    def do_tofile(self, _: int) -> None:
        self.redirect("file:///etc/passwd")

    def do_toftp(self, _: int) -> None:
        self.redirect("ftp://127.0.0.1/x.jpg")

    def do_flaky(self, number: int) -> None:
        if self.server.seen[self.path] == 1:
            self.send_error(503)
        else:
            self.send(encoded(number))

    def do_stall(self, _: int) -> None:
        self.server.over.wait(60)

    def do_stallbody(self, number: int) -> None:
        data = encoded(number)
        self.send(data[:200], length=len(data))
        self.server.over.wait(60)

    def do_trickle(self, number: int) -> None:
        self.send(b"", length=10**5)
        while not self.server.over.wait(0.2):
            self.wfile.write(b"x")

    def do_headers(self, _: int) -> None:
        self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
        while not self.server.over.wait(0.2):
            self.wfile.write(b"x")

    def do_endless(self, _: int) -> None:
        self.send_response(200)
        self.end_headers()
        while not self.server.over.is_set():
            self.wfile.write(bytes(65536))

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, delay: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen, self.lock, self.over, self.delay = Counter[str](), threading.Lock(), threading.Event(), delay

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are what is tested."""


@contextlib.contextmanager
def serving(delay: float = 0.0, context: ssl.SSLContext | None = None) -> Iterator[_Server]:
    """Runs the server for a while; `delay` is how long a good picture takes, in seconds; `context` makes it https."""
    server = _Server(delay)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
