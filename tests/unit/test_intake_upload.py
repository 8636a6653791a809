"""The octets of one message on their way in, in parts."""

import pytest

from aimx.intake.envelope import HeaderTooLarge, Upload
from aimx.store.contract import Staged

HEADER = b"From: a@fabric.local\r\nSubject: x\r\n\r\n"


class Staging:
    """A store that only stages."""

    def __init__(self):
        self.parts = {}

    async def stage(self, staged, chunk):
        number = staged.id if staged else len(self.parts) + 1
        self.parts[number] = self.parts.get(number, b"") + chunk
        return Staged(number, len(self.parts[number]))

    async def unstage(self, staged):
        del self.parts[staged.id]


async def test_a_message_in_parts_is_the_same_as_in_one():
    whole, parts, store = Upload(Staging()), Upload(Staging()), Staging()
    parts._store = store
    body = b"line\r\n" * 100
    whole.write(HEADER + body)
    parts.write(HEADER + body[:50])
    await parts.spill()
    parts.write(body[50:])
    one, other = await whole.finish(), await parts.finish()
    assert (one.sha256, one.body_sha256, one.header.to_bytes()) == (
        other.sha256,
        other.body_sha256,
        other.header.to_bytes(),
    )
    assert list(store.parts.values()) == [body] == [one.body]


async def test_a_first_part_that_is_all_header_is_a_message_without_body():
    upload = Upload(Staging())
    upload.write(HEADER)
    await upload.spill()
    octets = await upload.finish()
    assert (octets.body, octets.header.to_bytes()) == (b"", HEADER)


async def test_a_header_without_end_stays_refused_whatever_follows():
    store = Staging()
    upload = Upload(store)
    upload.write(b"X: " + b"y" * 1000)
    with pytest.raises(HeaderTooLarge):
        await upload.spill()
    upload.write(b"more\r\n\r\nand a body")
    with pytest.raises(HeaderTooLarge):
        await upload.spill()
    with pytest.raises(HeaderTooLarge):
        await upload.finish()
    await upload.discard()
    assert store.parts == {}
