"""A file system of its own that can fill up, and whose power can be cut.

SIGKILL says nothing about fsync: the page cache outlives a process. Here data lie on an ext4 in a file, which is shut
down without flushing its journal (EXT4_IOC_SHUTDOWN, include/uapi/linux/ext4.h), as a machine that loses power does.
Needs root, mkfs.ext4 and loop devices.
"""

import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
NO_LOG_FLUSH = 2


class Disk:
    """An ext4 file system in a file, mounted while in use. It lies where any account may enter."""

    def __init__(self, mib: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="aimx-disk-"))
        self.folder.chmod(0o755)
        self.image, self.path = self.folder / "disk", self.folder / "mnt"
        self.path.mkdir()
        with self.image.open("wb") as file:
            file.truncate(mib << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(self.image)], check=True, capture_output=True)

    def mount(self) -> None:
        """Skips the test where that cannot be done."""
        command = ["mount", "-o", "loop", str(self.image), str(self.path)]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"NOT TESTED: no loop device here: {done.stderr.decode().strip()}")

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.path)], check=False, capture_output=True)

    def remount(self) -> None:
        """What is on the disk after the power has come back.

        It is mounted from a copy of the image: another mount namespace may still hold the one that was shut down.
        """
        subprocess.run(["umount", str(self.path)], check=True, capture_output=True)
        copy = self.image.with_suffix(".copy")
        subprocess.run(["cp", "--sparse=always", str(self.image), str(copy)], check=True)
        copy.replace(self.image)
        subprocess.run(["mount", "-o", "loop", str(self.image), str(self.path)], check=True, capture_output=True)

    def cut(self) -> None:
        """From now on nothing reaches the disk, and what waits in memory never will."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(handle)

    def sync(self) -> None:
        """What is there now outlives a cut, whoever wrote it."""
        subprocess.run(["sync", "-f", str(self.path)], check=True)

    @property
    def ballast(self) -> Path:
        return self.path / "ballast"

    def fill(self, leave: int = 0) -> None:
        """Until so many octets are free."""
        room = os.statvfs(self.path)
        with self.ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, room.f_bavail * room.f_frsize - leave))

    def relieve(self) -> None:
        self.ballast.unlink(missing_ok=True)


@contextmanager
def mounted(mib: int = 512) -> Iterator[Disk]:
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("NOT TESTED: a disk of its own needs root and mkfs.ext4")
    disk = Disk(mib)
    try:
        disk.mount()
        yield disk
    finally:
        disk.unmount()
        shutil.rmtree(disk.folder, ignore_errors=True)
