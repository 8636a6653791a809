"""Backoff: it grows, it is capped, it is jittered, it never overflows."""

from hypothesis import given
from hypothesis import strategies as st

from aimx.config import Delivery
from aimx.delivery.retry import Backoff


def test_it_doubles_up_to_the_cap() -> None:
    backoff = Backoff(1000, 2, 10_000, 0)
    assert [backoff.delay_ms(n) for n in range(1, 7)] == [1000, 2000, 4000, 8000, 10_000, 10_000]


@given(st.integers(min_value=1, max_value=10**9))
def test_jitter_stays_within_its_share_however_many_attempts(attempt: int) -> None:
    settings = Delivery()
    delay = Backoff.of(settings).delay_ms(attempt)
    assert 1 <= delay <= settings.max_delay * 1000 * (1 + settings.jitter) + 1
    if attempt == 1:
        assert 800 <= delay <= 1200
