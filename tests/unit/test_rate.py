from aimx import rate
from aimx.rate import Rate, network


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_then_the_rate() -> None:
    clock = Clock()
    bucket = Rate(2.0, 3, clock)
    assert [bucket.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert bucket.take("b") == 0  # others have their own
    clock.now += 0.25
    assert bucket.take("a") == 0.25  # asking in vain costs nothing
    clock.now += 0.25
    assert bucket.take("a") == 0
    clock.now += 3600
    assert [bucket.take("a") for _ in range(4)] == [0, 0, 0, 0.5]  # no more than a burst is saved up


def test_the_rate_holds_over_time() -> None:
    clock = Clock()
    bucket = Rate(10.0, 5, clock)
    taken = 0
    for _ in range(6000):
        clock.now += 0.01
        taken += bucket.take("a") == 0
    assert 600 <= taken <= 606


def test_memory_is_bounded() -> None:
    bucket = Rate(1.0, 1)
    for n in range(rate.MOST + 100):
        bucket.take(str(n))
    assert len(bucket._buckets) == rate.MOST


def test_an_ipv6_customer_is_a_network() -> None:
    assert network("2001:db8:1:2:3::4") == network("2001:db8:1:2::1") == "2001:db8:1:2::"
    assert network("::ffff:192.0.2.7") == network("192.0.2.7") == "192.0.2.7"
    assert network("fe80::1%eth0") == "fe80::"
    assert network("unix") == "unix"
