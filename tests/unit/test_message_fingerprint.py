"""Fingerprints: what the loop guard takes for the same again."""

import time

import pytest

from aimx.message.fingerprint import payload_hash, template, template_hash


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b'{"turn": 1, "text": "please continue"}', b'{"turn": 27, "text": "please continue"}'),
        (b"at 2026-01-02T03:04:05.678Z", b"at 2027-11-30T23:59:59Z"),
        (b"at 2026-01-02 03:04:05+01:00", b"at 2026-01-02T03:04Z"),
        (b"On Mon, 2 Jan 2026 10:00:00 +0000 you said", b"On Thursday, 31 December 2026 1:00:00 +0000 you said"),
        (b"id 0c6d7c1e-58a5-4c4f-b33e-5a4c2d0f9b11!", b"id f1c6d7ce-58a5-4c4f-beef-face2d0f9b11!"),
        (b"run 01J8ZQ4R6V8X3F0K2M5N7P9Q1S done", b"run 01JB7W9Y2A4C6E8G0J2K4M6P8R done"),
        (b"score -1.5e-7", b"score 1,234.5"),
        (b"retry  3\r\n", b"retry 4\n"),
    ],
)
def test_numbers_times_and_ids_do_not_matter(one: bytes, other: bytes) -> None:
    assert template_hash(one) == template_hash(other), (template(one), template(other))
    assert payload_hash(one) != payload_hash(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b"please continue", b"please stop"),
        (b'{"a": 1}', b'{"b": 1}'),
        (b"I found 3 papers", b"I found 3 books"),
        (b"", b"x"),
    ],
)
def test_words_do_matter(one: bytes, other: bytes) -> None:
    assert template_hash(one) != template_hash(other)


@pytest.mark.parametrize(
    "data",
    [b"a" * 70_000, b"1" * 70_000, b"a1-" * 30_000, b"-" * 70_000, b"# " * 40_000, b"1 jan " * 12_000, b"+-" * 40_000],
)
def test_any_payload_costs_linear_time(data: bytes) -> None:
    start = time.process_time()
    template_hash(data)
    payload_hash(data)
    assert time.process_time() - start < 1


def test_only_the_beginning_of_a_long_payload_is_read() -> None:
    assert template_hash(b"word " * 20_000 + b"x") == template_hash(b"word " * 20_000 + b"y")
    assert payload_hash(b"a" * 100_000) != payload_hash(b"a" * 100_001)
