"""What all tests share."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import fsspec
import pytest
from hypothesis import settings

# Tests run side by side with others on few cores, and in processes of their own: one thread each is fastest.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A shell lets jobs in the background ignore Ctrl-C, and what the tests start would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples every time, and no deadline: a busy machine is no failure.
settings.register_profile("trimline", deadline=None, derandomize=True)
settings.load_profile("trimline")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees torchrun's variables or a cluster of the machine it runs on."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch):
    """A server that speaks S3 on the loopback, with a bucket."""
    s3fs = pytest.importorskip("s3fs", reason="s3fs is an optional dependency: pip install s3fs")
    pytest.importorskip("moto", reason="the S3 server of this test: pip install 'moto[server]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(url, timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        s3fs.S3FileSystem.clear_instance_cache()  # it would keep the address of the server of the test before
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("shards")
        yield "s3://shards/train"
    finally:
        server.kill()
        server.wait()
