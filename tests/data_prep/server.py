"""A web server on the loopback that serves a folder, and misbehaves when it is told to."""

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from urllib.parse import urlsplit

Fault = Callable[[int, str], str | None]
"""(number of the request, file name) -> what goes wrong, or None."""

PAGE = b"<html><body>Please log in</body></html>"
LONG_PAGE = PAGE * 5000


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.fault: Fault = lambda number, name: None
        self.stall = threading.Event()
        self.requests: list[tuple[str, str | None]] = []
        self.proxy_credentials: list[str | None] = []
        self.lock = threading.Lock()

    def server_bind(self) -> None:
        """Without a search for the machine's name, which takes seconds where there is no name server."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data"

    def handle_error(self, request, client_address) -> None:
        pass  # clients that went away are what these tests are about


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    server: Server

    def log_message(self, *arguments) -> None:
        pass

    def do_GET(self) -> None:
        name = urlsplit(self.path).path.removeprefix("/data/")
        wanted = self.headers.get("Range")
        with self.server.lock:
            number = len(self.server.requests)
            self.server.requests.append((name, wanted))
            self.server.proxy_credentials.append(self.headers.get("Proxy-Authorization"))
        fault = self.server.fault(number, name)
        path = self.server.root / name
        if fault == "vanish":
            self.close_connection = True
        elif fault == "html":
            self.answer(200, PAGE, {"Content-Type": "text/html"})
        elif fault == "moved":
            self.answer(302, b"there", {"Location": f"/data/{name}?token=secret"})
        elif fault == "moved to nowhere":
            self.answer(302, b"there", {"Location": "http://[nowhere/a.tar?token=secret"})
        elif fault == "chunked page":
            self.in_chunks(LONG_PAGE, {})
        elif fault == "endless":
            self.in_chunks(None, {"Content-Type": "application/json"})
        elif fault == "gzip":
            self.answer(200, gzip.compress(path.read_bytes()), {"Content-Encoding": "gzip"})
        elif fault == "gzip chunks":
            self.in_chunks(gzip.compress(path.read_bytes()), {"Content-Encoding": "gzip"})
        elif fault == "gzip range":
            self.serve(gzip.compress(path.read_bytes()), wanted, None, {"Content-Encoding": "gzip"})
        elif fault is not None and fault.isdecimal():
            self.answer(int(fault), b"sorry", {"Retry-After": "0"})
        elif not path.is_file():
            self.answer(404, b"no such file")
        else:
            self.serve(path.read_bytes(), None if fault in ("no range", "no length") else wanted, fault)

    def in_chunks(self, data: bytes | None, headers: dict[str, str]) -> None:
        """An answer whose length nobody states, and which has no end where there is no data."""
        self.send_response(200)
        for name, value in {**headers, "Transfer-Encoding": "chunked"}.items():
            self.send_header(name, value)
        self.end_headers()
        step = 1 << 16
        pieces = (
            iter(lambda: LONG_PAGE, b"") if data is None else (data[at : at + step] for at in range(0, len(data), step))
        )
        for piece in pieces:
            if self.server.stall.is_set():
                return
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def serve(self, data: bytes, wanted: str | None, fault: str | None, headers: dict[str, str] | None = None) -> None:
        if wanted is None and fault == "no length":
            self.in_chunks(data, {"Content-Type": "application/x-tar"})
            return
        if wanted is None:
            self.answer(200, data, {"Content-Type": "application/x-tar"}, fault)
            return
        begin, end = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
        if begin >= len(data):
            self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        part = data[begin : end + 1]
        total = len(data) + (fault == "other size")
        if fault == "impossible range":
            total = begin + len(part) // 2
        begin += fault == "other range"
        stated = f"bytes {begin}-{begin + len(part) - 1}/{total}"
        self.answer(206, part, {**(headers or {}), "Content-Range": stated}, fault)

    def answer(self, status: int, data: bytes, headers: dict[str, str] | None = None, fault: str | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        half = len(data) // 2
        self.wfile.write(data[:half])
        if fault == "stall":
            self.wfile.flush()
            self.server.stall.wait(60)
        if fault in ("stall", "drop"):
            self.close_connection = True
            return
        if fault == "drip":
            for place in range(half, len(data)):
                self.wfile.write(data[place : place + 1])
                self.wfile.flush()
                if self.server.stall.wait(0.05):
                    return
        elif fault == "slow":
            for place in range(half, len(data), 1 + len(data) // 8):
                time.sleep(0.01)
                self.wfile.write(data[place : place + 1 + len(data) // 8])
                self.wfile.flush()
        else:
            self.wfile.write(data[half:])


@contextmanager
def serving(root: Path) -> Iterator[Server]:
    server = Server(root)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stall.set()
        server.shutdown()
        server.server_close()
        thread.join()
