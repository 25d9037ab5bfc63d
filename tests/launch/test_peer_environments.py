"""Environments of other projects' tools."""

import subprocess
from pathlib import Path

from launch.peer_environments import peer_python


def test_an_environment_that_another_checkout_has_made_sees_our_packages(tmp_path: Path) -> None:
    python = peer_python(tmp_path, "nothing", ("pip",), borrow=True)
    (borrowed,) = tmp_path.glob("nothing-*/lib/python*/site-packages/borrowed.pth")
    borrowed.write_text(f"{tmp_path}/gone/site-packages\n")
    assert peer_python(tmp_path, "nothing", ("pip",), borrow=True) == python
    done = subprocess.run([str(python), "-c", "import cv2"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
