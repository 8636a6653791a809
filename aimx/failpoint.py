"""Places at which a test has the process die, as a crash would: SIGKILL, nothing is cleaned up.

`AIMX_FAILPOINT=store.committed aimx serve` dies when that place is first reached, `store.committed:7` at the seventh
time. Without the variable a place costs one call of an empty function.
"""

import os
import signal

POINTS = {
    "accept.begin": "a message was judged and stamped, nothing is written",
    "store.commit": "a group of writes is in the transaction, not committed",
    "store.committed": "a group of writes is durable, nobody was told",
    "accept.committed": "a message is durable, its sender was not answered",
    "claim.committed": "deliveries are leased, no attempt was begun",
    "attempt.begin": "an attempt is about to be made",
    "attempt.committed": "an attempt's outcome is durable, the queue does not know",
    "settle.begin": "a delivery is given up, its notice is not written",
    "settle.committed": "a delivery is given up and its notice is durable",
    "sequence.read": "leaves were read from the outbox, the log has not got them",
    "sequence.appended": "leaves are in the log, the outbox does not know",
    "sequence.marked": "the outbox knows that leaves are in the log, no checkpoint says so",
    "shard.closed": "a shard's last leaf is in the log, the next shard has not begun",
    "shard.begun": "the next shard has begun, its key is not in force here",
    "key.logged": "the leaf that puts a key in force is in the log, the key still waits",
    "checkpoint.signed": "a checkpoint is signed and stored, the file beside the log is the one before",
}
"""Every place, and what is true there."""

VARIABLE = "AIMX_FAILPOINT"


class _Armed:
    """Counts how often its place is reached."""

    def __init__(self, setting: str) -> None:
        self._name, _, times = setting.partition(":")
        if self._name not in POINTS or not (times or "1").isdecimal():
            raise SystemExit(f"{VARIABLE}: {setting!r} is no failpoint; give one of {', '.join(POINTS)}, or NAME:TIMES")
        self._left = int(times or "1")

    def reach(self, name: str) -> None:
        if name == self._name:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def _pass(name: str) -> None:
    """Nothing is to happen anywhere."""


_setting = os.environ.get(VARIABLE)
reach = _Armed(_setting).reach if _setting else _pass
