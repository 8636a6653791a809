"""What was answered 250 survives a power cut, once; and the log can still prove it.

SIGKILL says nothing about fsync: the page cache outlives a process. Here the data folder lies on a file system of its
own, which is shut down without flushing its journal (ext4's EXT4_IOC_SHUTDOWN, include/uapi/linux/ext4.h), as a machine
that loses power does. Needs root, mkfs.ext4 and loop devices.
"""

import fcntl
import json
import os
import shutil
import struct
import subprocess
import time
from contextlib import contextmanager, suppress

import pytest

from tests.node_process import NodeProcess
from tests.system.crash_load import Book, Door, Submitter, account_for, look, seeded

SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
NO_LOG_FLUSH = 2


class Disk:
    """An ext4 file system in a file, mounted while in use."""

    def __init__(self, folder):
        self.image, self.path = folder / "disk", folder / "mnt"
        self.path.mkdir()
        with self.image.open("wb") as file:
            file.truncate(512 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(self.image)], check=True, capture_output=True)

    def mount(self):
        return subprocess.run(
            ["mount", "-o", "loop", str(self.image), str(self.path)], capture_output=True, check=False
        )

    def unmount(self):
        subprocess.run(["umount", str(self.path)], check=True, capture_output=True)

    def cut(self):
        """From now on nothing reaches the disk, and what waits in memory never will."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(handle)


@contextmanager
def mounted(folder):
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("NOT TESTED: a power cut needs root and mkfs.ext4")
    disk = Disk(folder)
    done = disk.mount()
    if done.returncode != 0:
        pytest.skip(f"NOT TESTED: no loop device here: {done.stderr.decode().strip()}")
    try:
        yield disk
    finally:
        with suppress(subprocess.CalledProcessError):
            disk.unmount()


def test_a_power_cut_loses_and_repeats_nothing(tmp_path):
    power_run(tmp_path, cuts=2)


@pytest.mark.torture
@pytest.mark.timeout(600)
def test_twenty_power_cuts_lose_and_repeat_nothing(tmp_path):
    power_run(tmp_path, cuts=20)


def power_run(tmp_path, cuts):
    dice = seeded()
    with mounted(tmp_path) as disk:
        node = NodeProcess(tmp_path / "node")
        node.data = disk.path / "data"
        node.start()
        try:
            senders = [node.add_agent(f"sender{n}") for n in range(2)]
            readers = [node.add_agent(f"reader{n}") for n in range(3)]
            book, door = Book(), Door(node)
            crew = [Submitter(f"c{n}", door, senders[n % 2], readers, book, dice.randrange(1 << 32)) for n in range(4)]
            for one in crew:
                one.start()
            door.open()
            for _ in range(cuts):
                time.sleep(dice.uniform(0.3, 1.2))
                node.freeze()  # without power nobody runs on: a node that hears of the cut is another test
                disk.cut()
                door.shut()
                node.kill()
                disk.unmount()
                assert disk.mount().returncode == 0
                node.start()
                door.open()
            time.sleep(0.3)
            door.end()
            for one in crew:
                one.join(30)
                assert not one.is_alive()
                assert one.failure is None, one.failure
            boxes = {reader.address: [look(node, reader)] for reader in readers}
            wrong = account_for(book, boxes)
            verdict = json.loads(node.aimx("audit", "verify", "--json", check=False).stdout)
            print(
                f"{cuts} power cuts, {len(book.answered)} messages answered 250, {len(book.unanswered)} unanswered, "
                f"refused {dict(book.refused)}, log {verdict['size']} leaves {verdict['consistent']} "
                f"{verdict['complete']}, wrong {len(wrong)}"
            )
            assert not wrong, wrong[:20]
            assert not book.refused, "a node that lives takes what it is sent"
            assert (verdict["ok"], verdict["complete"]) == (True, "COMPLETE"), verdict
            assert len(book.answered) > 10 * cuts, "hardly any load"
            node.stop()
        finally:
            if node.process is not None:
                node.kill()
