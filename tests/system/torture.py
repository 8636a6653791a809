"""One run: clients at work, one fault after the other, everything healed, and then the books are balanced."""

import time
from collections.abc import Iterable

from tests.node_process import Account
from tests.system.crash_load import Book, Client, Door, Mover, Submitter, Watcher, account_for, look, notices
from tests.system.site import Site

JOIN_S = 90
Counters = dict[int, tuple[int, int]]


class Crew:
    """All who write and read during a run."""

    def __init__(self, site: Site, pace_s: float) -> None:
        dice = site.dice
        self.senders = [site.add_agent(f"sender{n}") for n in range(2)]
        self.readers = [site.add_agent(f"reader{n}") for n in range(2)]
        self.mover = site.add_agent("mover", 20)
        self.idle = site.add_agent("idle", 5)
        """Reads nothing: most of what is sent to it comes back."""
        to = [*self.readers, *self.readers, self.mover, self.mover, self.idle]
        self.book, self.door = Book(), Door(*site.nodes)
        self.watcher = Watcher(self.door, self.readers[0], dice.randrange(1 << 32))
        submitters = [
            Submitter(
                f"c{n}", self.door, self.senders[n % 2], to, self.book, dice.randrange(1 << 32), 0.6, 0.05, pace_s
            )
            for n in range(4)
        ]
        self.clients: list[Client] = [*submitters, self.watcher, Mover(self.door, self.mover, dice.randrange(1 << 32))]

    def begin(self) -> None:
        for one in self.clients:
            one.start()
        self.door.open()

    def well(self) -> None:
        failures = [f"{one.name}: {one.failure!r}" for one in self.clients if one.failure is not None]
        assert not failures, failures

    def end(self) -> None:
        """What is in hand is finished: what has an Idempotency-Key is repeated until it is answered."""
        self.door.end()
        for one in self.clients:
            one.join(JOIN_S)
            assert not one.is_alive(), one.name
        self.well()
        owing = [one.name for one in self.clients if one.owes()]
        assert not owing, f"these were never answered: {owing}"

    def accuse(self, site: Site) -> list[str]:
        """What is wrong at the end."""
        node = site.nodes[-1]
        accounts: list[Account] = [*self.readers, self.mover, self.idle]
        boxes = {account.address: [look(node, account), look(node, account, "Done")] for account in accounts}
        wrong = account_for(self.book, boxes, notices(node, self.senders))
        return wrong + self.watcher.accuse(boxes[self.readers[0].address][0])


def torture(site: Site, faults: Iterable[str], pace_s: float = 0.0, *, pause_s: float = 0.9) -> None:
    """Raises AssertionError with what is wrong."""
    crew = Crew(site, pace_s)
    if site.disk is not None:
        site.disk.sync()  # initdb does not; from here on the stores have to
    crew.begin()
    before = site.counters()
    try:
        for fault in faults:
            time.sleep(site.dice.uniform(0.3, pause_s))
            site.strike(fault)
            crew.well()
            before = risen(before, site.counters())
        time.sleep(0.5)
        site.heal()
    finally:
        crew.door.finished.set()
    crew.end()
    site.wait_until_nothing_waits()
    balance(site, crew)


def risen(before: Counters, after: Counters) -> Counters:
    """No crash takes back a UID or a MODSEQ."""
    fallen = {
        box: (then, after.get(box)) for box, then in before.items() if box not in after or _less(after[box], then)
    }
    assert not fallen, fallen
    return after


def _less(after: tuple[int, int], before: tuple[int, int]) -> bool:
    return any(now < then for now, then in zip(after, before, strict=True))


def balance(site: Site, crew: Crew) -> None:
    book, wrong, verdict = crew.book, crew.accuse(site), site.verdict()
    print(
        f"{site}; {len(book.answered)} messages answered 250, {len(book.unanswered)} not, {book.hung_up} hung up on, "
        f"{book.repeated} repeated, refused {dict(book.refused)}; log {verdict['size']} leaves "
        f"{verdict['consistent']} {verdict['complete']}; wrong {len(wrong)}",
        flush=True,
    )
    assert not wrong, wrong[:20]
    assert (verdict["ok"], verdict["consistent"], verdict["complete"]) == (True, "CONSISTENT", "COMPLETE"), verdict
    assert len(book.answered) > 10 * site.struck.total(), "hardly any load"
    site.stop()
