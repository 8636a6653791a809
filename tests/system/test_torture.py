"""What was answered 250 survives SIGKILL at any moment, once; and the log can still prove it."""

import json
import time

import pytest

from tests.node_process import NodeProcess
from tests.system.crash_load import Book, Door, Found, Mover, Submitter, account_for, look, seeded, settle

CONFIG = """
[delivery]
first_delay = "200ms"
max_delay = "1s"
lease = "3s"
"""


def test_a_few_crashes_lose_and_repeat_nothing(tmp_path):
    crash_run(tmp_path, kills=4)


@pytest.mark.torture
@pytest.mark.timeout(900)
def test_fifty_crashes_lose_and_repeat_nothing(tmp_path):
    crash_run(tmp_path, kills=50)


def crash_run(tmp_path, kills):
    dice = seeded()
    node = NodeProcess(tmp_path, CONFIG).start()
    try:
        senders = [node.add_agent(f"sender{n}") for n in range(3)]
        readers = [node.add_agent(f"reader{n}") for n in range(3)]
        mover = node.add_agent("mover")
        busy = node.add_agent("busy", "--max-unacked", "20")
        to = [*readers, mover, busy]
        book, door = Book(), Door(node)
        clients = [
            Submitter(f"c{n}", door, senders[n % len(senders)], to, book, dice.randrange(1 << 32)) for n in range(6)
        ]
        crew = [*clients, Mover(door, mover)]
        for one in crew:
            one.start()
        door.open()
        killed_starting, early = 0, None
        for number in range(kills):
            time.sleep(dice.uniform(0.05, 0.9))
            door.shut()
            node.kill()
            if dice.random() < 0.2:
                node.start_and_kill(dice.uniform(0.0, 0.8))
                killed_starting += 1
            node.start()
            if number == kills // 2:
                early = look(node, readers[0])
            door.open()
            failures = [one.failure for one in crew if one.failure is not None]
            assert not failures, failures
        time.sleep(0.5)
        door.end()
        for one in crew:
            one.join(30)
            assert not one.is_alive()
            assert one.failure is None, one.failure
        boxes = {reader.address: [look(node, reader)] for reader in readers}
        boxes[mover.address] = [look(node, mover), look(node, mover, "Done")]
        boxes[busy.address] = drained(node, busy, {key for key, (_, to) in book.answered.items() if busy.address in to})
        wrong = account_for(book, boxes)
        verdict = json.loads(node.aimx("audit", "verify", "--json", check=False).stdout)
        print(
            f"{kills} kills (+ {killed_starting} while starting), {len(book.answered)} messages answered 250, "
            f"{len(book.unanswered)} unanswered, refused {dict(book.refused)}, "
            f"log {verdict['size']} leaves {verdict['consistent']} {verdict['complete']}, wrong {len(wrong)}"
        )
        assert not wrong, wrong[:20]
        assert not book.refused, "a node that lives takes what it is sent"
        assert (verdict["ok"], verdict["consistent"], verdict["complete"]) == (True, "CONSISTENT", "COMPLETE"), verdict
        assert len(book.answered) > 20 * kills, "hardly any load"
        assert early is not None
        assert_kept(early, boxes[readers[0].address][0])
        assert node.stop() < 10
    finally:
        if node.process is not None:
            node.kill()


def assert_kept(before: Found, after: Found) -> None:
    """A UID, once seen, belongs to the same message for ever (RFC 3501 §2.3.1.1)."""
    for key, held in before.by_key.items():
        assert after.by_key[key] == held


def drained(node, busy, expected):
    """Acknowledge what the busy agent has until all that was promised to it has come, or nothing comes any more."""
    with node.imap(busy) as client:
        client.create("Done")
        until = time.monotonic() + 30
        while time.monotonic() < until:
            if settle(client):
                until = time.monotonic() + 30
            elif expected <= look(node, busy, "Done").by_key.keys():
                break
            client.noop()
            time.sleep(0.1)
    return [look(node, busy, "Done"), look(node, busy)]
