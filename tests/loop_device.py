"""A file system in a file, mounted by a loop device: its device number can be another one later."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SIZE_BYTES = 32 << 20


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no loop device: {done.stderr.strip()}")
    return done.stdout.strip()


def made(image: Path) -> Path:
    """Make an ext4 in ``image``; skip where no loop device can be had."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("losetup", "mkfs.ext4", "mount"))):
        pytest.skip("no loop device: takes root, losetup and mkfs.ext4")
    image.touch()
    os.truncate(image, SIZE_BYTES)
    _run("mkfs.ext4", "-q", image)
    return image


@contextmanager
def attached(image: Path) -> Iterator[str]:
    """Yield the device by which ``image`` can be mounted: the first that nobody uses."""
    device = _run("losetup", "--find", "--show", image)
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextmanager
def mounted(image: Path, at: Path) -> Iterator[None]:
    with attached(image) as device:
        _run("mount", device, at)
        try:
            yield
        finally:
            subprocess.run(["umount", at], check=True)
