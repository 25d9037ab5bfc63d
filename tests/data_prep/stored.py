"""The same files as a folder, a tar or a zip, for the tests."""

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path


def store(path: Path, kind: str, files: Mapping[str, bytes]) -> Path:
    """Writes files as a folder, a plain tar, or a zip (stored or deflated); returns where."""
    if kind == "folder":
        path.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
        return path
    if kind == "tar":
        out = path.with_name(f"{path.name}.tar")
        with tarfile.open(out, "w") as tar:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return out
    out = path.with_name(f"{path.name}.zip")
    packing = zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED
    with zipfile.ZipFile(out, "w", packing) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out
