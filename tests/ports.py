"""Ports for what must be told its own or another's port before it is started.

They lie below the range from which the kernel gives ports to connections and to whoever binds 0 (Linux: 32768 and up),
so that nobody takes one in between; each test process draws from a part of its own, and two runs
of the tests at once begin at different places of it.
"""

import itertools
import os
import socket

FIRST, EACH = 20_000, 1_500
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_numbers = (FIRST + _worker % 8 * EACH + n % EACH for n in itertools.count(os.getpid()))


def free_port() -> int:
    """A port of loopback at which nobody listens, and which is given to no second caller for long."""
    while True:
        port = next(_numbers)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
