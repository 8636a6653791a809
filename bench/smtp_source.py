"""Postfix's own load generator, for servers that take mail in the clear without AUTH: the same program, and the same
mail, for each of them."""

import subprocess
import time
from collections.abc import Sequence

from bench.generator import Result, Unavailable
from tests.node_process import Account

PROGRAM = "smtp-source"
LIMIT_S = 120


class SmtpSource:
    """A process for each connection, since one writes to one mailbox only; kept connections, one recipient."""

    def __init__(self) -> None:
        try:
            subprocess.run([PROGRAM, "-h"], capture_output=True, check=False)
        except FileNotFoundError:
            raise Unavailable(f"{PROGRAM} comes with Postfix; apt-get install postfix") from None

    def run(
        self,
        smtp: str,
        senders: Sequence[Account],
        recipients: Sequence[Account],
        *,
        count: int,
        connections: int,
        size: int,
    ) -> Result:
        """`smtp`: HOST:PORT. `size`: octets of the message's lines. How long single answers took is not known: 0."""
        shares = [count // connections + (n < count % connections) for n in range(connections)]
        began = time.time()
        processes = [
            subprocess.Popen(
                [
                    PROGRAM,
                    *("-4", "-d", "-s", "1", "-m", str(share), "-l", str(size)),
                    *("-f", senders[n % len(senders)].address, "-t", recipients[(n + 1) % len(recipients)].address),
                    f"inet:{smtp}",
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for n, share in enumerate(shares)
            if share
        ]
        said = [process.communicate(timeout=LIMIT_S)[1] for process in processes]
        failures = [text for text, process in zip(said, processes, strict=True) if text or process.returncode]
        ended = time.time()
        if failures:
            raise RuntimeError(f"{PROGRAM} failed: {failures[0]}")
        return Result(count, 0, count / (ended - began), began, ended, {"p50": 0.0, "p99": 0.0})
