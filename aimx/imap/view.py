r"""What one session has been told of its mailbox, and what it must still be told.

Rules of this file:

1. The client's sequence numbers mean exactly `uids`. Only `announce` changes it, in step with what it returns.
2. EXPUNGE is announced only when the caller allows it: never during FETCH, STORE, SEARCH (RFC 3501 §7.4.1), nor when no
   command is in progress, except in IDLE. EXISTS and flags may go at the end of any command.
3. Whatever changed is learned from `Store.changes` alone, our own changes too, so that sessions cannot disagree. What a
   command has told the client already is remembered by MODSEQ (`tell`) and not said twice.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from aimx.imap import response
from aimx.imap.errors import Bad
from aimx.imap.grammar import STAR, SequenceSet
from aimx.store.contract import Changes, Mailbox, Marked, Snapshot
from aimx.store.search import Ranges


class View:
    """The selected mailbox as this session's client knows it."""

    __slots__ = (
        "_changed", "_fresh", "_told", "_uidnext", "_vanished",
        "gone", "mailbox", "modseq", "read_only", "recent", "uids",
    )  # fmt: skip

    def __init__(self, snapshot: Snapshot, read_only: bool) -> None:
        self.mailbox: Mailbox = snapshot.mailbox
        self.read_only = read_only
        self.uids: array[int] = snapshot.uids
        self.modseq = snapshot.modseq
        self.gone = False
        self.recent: list[tuple[int, int]] = []
        r"""Ranges of UIDs that are \Recent in this session."""
        if len(self.uids) and self.uids[-1] >= snapshot.recent_from:
            self.recent.append((snapshot.recent_from, self.uids[-1]))
        self._uidnext = max(snapshot.uidnext, self.uids[-1] + 1 if len(self.uids) else 1)
        self._fresh: list[int] = []
        self._vanished: set[int] = set()
        self._changed: dict[int, frozenset[str]] = {}
        self._told: dict[int, int] = {}

    # --- numbers ---

    def number(self, uid: int) -> int | None:
        """The sequence number of a message the client knows."""
        place = bisect_left(self.uids, uid)
        return place + 1 if place < len(self.uids) and self.uids[place] == uid else None

    def recent_count(self) -> int:
        return sum(bisect_right(self.uids, high) - bisect_left(self.uids, low) for low, high in self.recent)

    def is_recent(self, uid: int) -> bool:
        return any(low <= uid <= high for low, high in self.recent)

    def ranges(self, by_uid: bool, messages: SequenceSet) -> Ranges:
        """UID ranges of a sequence set, within what the client knows. Raises Bad for sequence numbers beyond it."""
        count = len(self.uids)
        found: list[tuple[int, int]] = []
        for first, last in messages:
            low, high = min(first, last), max(first, last)
            if by_uid:
                # `*` is the largest UID, so `7:*` names it even when 7 is beyond (RFC 3501 §6.4.8).
                top = self.uids[-1] if count else 0
                low, high = (min(low, top) if high == STAR else low), min(high, top)
                if count and low <= high:
                    found.append((low, high))
                continue
            if high != STAR and high > count:
                raise Bad("no message has that number")
            if count:
                found.append((self.uids[min(low, count) - 1], self.uids[min(high, count) - 1]))
        return _merged(found)

    def known(self, uids: Iterable[int]) -> Iterator[int]:
        """Those of ascending `uids` that the client knows."""
        return (uid for uid in uids if self.number(uid) is not None)

    def slices(self, ranges: Ranges, size: int) -> Iterator[Ranges]:
        """The messages in `ranges`, at most `size` of them at a time, as UID ranges."""
        held: list[tuple[int, int]] = []
        room = size
        for low, high in ranges:
            start, stop = bisect_left(self.uids, low), bisect_right(self.uids, high)
            while start < stop:
                end = min(stop, start + room)
                held.append((self.uids[start], self.uids[end - 1]))
                room -= end - start
                start = end
                if not room:
                    yield tuple(held)
                    held, room = [], size
        if held:
            yield tuple(held)

    # --- changes ---

    def learn(self, changes: Changes) -> None:
        """Take in what happened since `modseq`; nothing is said yet."""
        self.gone = self.gone or changes.gone
        fresh: list[int] = []
        for marked in changes.marked:
            if marked.uid >= self._uidnext:
                fresh.append(marked.uid)
            elif self._told.get(marked.uid, 0) < marked.modseq:
                self._changed[marked.uid] = marked.flags
        recent_from = max(self._uidnext, changes.recent_from)
        if fresh and fresh[-1] >= recent_from:
            self.recent = list(_merged([*self.recent, (recent_from, fresh[-1])]))
        self._fresh += fresh
        self._uidnext = max(self._uidnext, changes.uidnext)
        self.modseq = max(self.modseq, changes.modseq)
        self._told.clear()
        if changes.vanished:
            self._vanish(set(changes.vanished))

    def _vanish(self, gone: set[int]) -> None:
        """What came and went between two looks was never there."""
        self._fresh = [uid for uid in self._fresh if uid not in gone]
        self._vanished.update(uid for uid in gone if self.number(uid) is not None)
        for uid in gone:
            self._changed.pop(uid, None)

    def tell(self, marked: Iterable[Marked]) -> None:
        """The client knows these flags now: `learn` need not bring them up up to that MODSEQ."""
        for entry in marked:
            self._told[entry.uid] = entry.modseq
            self._changed.pop(entry.uid, None)

    def flags(self, uid: int, held: frozenset[str]) -> frozenset[str]:
        r"""The flags to show, with \Recent where it is."""
        return held | {"\\Recent"} if self.recent and self.is_recent(uid) else held

    def announce(self, expunge: bool, with_uid: bool = False) -> bytes:
        """The untagged responses that bring the client up to date; `expunge` says whether EXPUNGE is allowed now."""
        out = self._expunge() if expunge and self._vanished else []
        if self._fresh:
            self.uids.extend(self._fresh)
            self._fresh = []
            out.append(b"* %d EXISTS\r\n* %d RECENT\r\n" % (len(self.uids), self.recent_count()))
        for uid in sorted(self._changed):
            number = self.number(uid)
            if number is not None:
                out.append(flags_response(number, uid if with_uid else None, self.flags(uid, self._changed[uid])))
        self._changed.clear()
        return b"".join(out)

    def _expunge(self) -> list[bytes]:
        places = sorted(number for number in map(self.number, self._vanished) if number is not None)
        # From the last to the first: no number shifts before it is used (RFC 3501 §7.4.1).
        out = [b"* %d EXPUNGE\r\n" % place for place in reversed(places)]
        if len(places) > 100:
            self.uids = array(self.uids.typecode, (uid for uid in self.uids if uid not in self._vanished))
        else:
            for place in reversed(places):
                del self.uids[place - 1]
        self._vanished = set()
        return out


def flags_response(number: int, uid: int | None, held: frozenset[str]) -> bytes:
    if uid is None:
        return b"* %d FETCH (FLAGS %b)\r\n" % (number, response.flags(held))
    return b"* %d FETCH (UID %d FLAGS %b)\r\n" % (number, uid, response.flags(held))


def _merged(ranges: list[tuple[int, int]]) -> Ranges:
    """Ascending, without overlaps or neighbours."""
    out: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1] + 1:
            if high > out[-1][1]:
                out[-1] = (out[-1][0], high)
        else:
            out.append((low, high))
    return tuple(out)
