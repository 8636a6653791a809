"""What was answered 250 survives a power cut, once, on either store; and the log can still prove it.

What these runs are worth is shown by the last two: a store that syncs nothing is found out. SIGKILL would not tell.
"""

import os
import time
from itertools import takewhile

import pytest

from tests.system.crash_load import seeded
from tests.system.site import postgres_site, sqlite_site
from tests.system.torture import torture

CUTS = int(os.environ.get("CUTS", "50"))
MINUTES = float(os.environ.get("MINUTES", "30"))
MIB = 512
SITES = pytest.mark.parametrize("make", [sqlite_site, postgres_site])


@SITES
def test_power_cuts_lose_and_repeat_nothing(tmp_path, make):
    with make(tmp_path, seeded(), disk_mib=MIB) as site:
        torture(site, ["power_cut"], pause_s=1.2)


@pytest.mark.torture
@pytest.mark.timeout(7200)
@SITES
def test_many_power_cuts_lose_and_repeat_nothing(tmp_path, make):
    with make(tmp_path, seeded(), disk_mib=MIB) as site:
        until = time.monotonic() + MINUTES * 60
        torture(site, takewhile(lambda _: time.monotonic() < until, ["power_cut"] * CUTS), pause_s=1.2)


def test_a_careless_sqlite_is_found_out(tmp_path):
    with sqlite_site(tmp_path, seeded(), disk_mib=MIB, prelude="tests.careless_sqlite") as site:
        assert_found_out(site)


def test_a_careless_postgres_is_found_out(tmp_path):
    with postgres_site(tmp_path, seeded(), disk_mib=MIB, settings={"fsync": "off"}) as site:
        assert_found_out(site)


def assert_found_out(site):
    """Mail is missing after a cut, or there is no database left to start with."""
    with pytest.raises(AssertionError) as wrong:
        torture(site, ["power_cut"] * 3, pause_s=1.2)
    said = str(wrong.value)
    print(f"found out: {said[:400]}")
    assert "hardly any load" not in said
    assert "Input/output error" not in said, "the disk was not there: that says nothing about the store"
