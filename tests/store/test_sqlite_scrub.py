"""After an erasure nothing of the message stands in SQLite's files, also not in the journal."""

from pathlib import Path

from aimx.store.sqlite import SqliteStore
from tests.store.conftest import BOB
from tests.store.factory import new_event, new_message, new_target

WORDS = [b"tulip-in-the-body", b"tulip-in-the-header", b"tulip-sender", b"tulip-opening", b"T" * 32]


async def test_no_octet_of_it_is_left_in_the_files(tmp_path: Path) -> None:
    node, beside = SqliteStore(tmp_path / "mail.db", "n1"), SqliteStore(tmp_path / "mail.db", "n1", guest=True)
    await node.open()
    small = new_message(
        header=b"Subject: tulip-in-the-header\r\n\r\n", body=b"tulip-in-the-body", sender="tulip-sender@fabric.local"
    )
    large = new_message(body=b"tulip-in-the-body " * 60_000)
    for message in (small, large):
        event = new_event("message.accepted", ref=message.eid, key=b"T" * 32, detail={"open": {"x": "tulip-opening"}})
        await node.accept(message, [new_target(BOB)], lambda _, event=event: [event])  # type: ignore[misc]
    assert [word for word in WORDS if word not in octets(tmp_path)] == []

    await beside.open()
    for message in (small, large):
        await beside.erase(message.eid, [])
    assert await beside.scrub() is None
    assert [word for word in WORDS if word in octets(tmp_path)] == []
    await beside.close()
    await node.close()


def octets(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())
