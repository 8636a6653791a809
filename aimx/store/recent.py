r"""Which messages are \Recent (RFC 3501 §2.3.2), without a commit for each time a session is told of one."""

import threading


class Claims:
    r"""Up to which UID a session of this process has already been told \Recent, by mailbox id.

    Memory decides who is first; the table follows later, in bulk. After a crash, or at two sessions of different
    processes at once, a message may be \Recent twice, as RFC 3501 §2.3.2 allows where it cannot be determined.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._from: dict[int, int] = {}
        self._unsaved: dict[int, int] = {}

    def __bool__(self) -> bool:
        """Whether there are any to be saved."""
        return bool(self._unsaved)

    def first_recent(self, mailbox: int, stored: int, uidnext: int, claim: bool) -> int:
        """The first UID that is \\Recent; `claim`: those below `uidnext` are not for later sessions."""
        with self._lock:
            first = max(stored, self._from.get(mailbox, 0))
            if claim and uidnext > first:
                self._from[mailbox] = self._unsaved[mailbox] = uidnext
            return first

    def take_unsaved(self) -> dict[int, int]:
        """First UID not claimed, by mailbox id: what the table does not know yet."""
        with self._lock:
            unsaved, self._unsaved = self._unsaved, {}
            return unsaved
