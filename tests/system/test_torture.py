"""What was answered 250 survives whatever happens to processes and to what they stand on, once; the log can prove it.

Clients write and read over the wire and keep their own books; meanwhile workers and nodes are killed, at random and at
named steps, PostgreSQL crashes, disks fill, clocks jump, networks are cut. SEED=… throws the same dice again; KILLS and
MINUTES say how long `make torture` and `make torture-nodes` go on.
"""

import os
import time
from collections.abc import Iterator

import pytest

from tests.system.crash_load import seeded
from tests.system.site import STEPS, Site, postgres_site, sqlite_site
from tests.system.torture import torture

KILLS = int(os.environ.get("KILLS", "500"))
MINUTES = float(os.environ.get("MINUTES", "30"))
"""The longest that any of the long runs goes on."""
ON_SQLITE = {"node_killed": 4, "step_reached": 2, "clock_jumped": 1}
ON_POSTGRES = {"worker_killed": 8, "node_killed": 3, "parent_killed": 1, "step_reached": 3, "postgres_crashed": 1}
ON_NODES = {**ON_POSTGRES, "network_cut": 2, "clock_jumped": 2}


def test_a_few_crashes_on_sqlite(tmp_path):
    with sqlite_site(tmp_path, seeded()) as site:
        torture(site, ["node_killed", "clock_jumped", "step_reached"])


def test_a_few_crashes_of_two_workers_on_postgres(tmp_path):
    with postgres_site(tmp_path, seeded()) as site:
        torture(site, ["worker_killed", "postgres_crashed", "parent_killed"])


def test_two_nodes_with_networks_of_their_own(tmp_path):
    with postgres_site(tmp_path, seeded(), nodes=2, workers=1, apart=True) as site:
        torture(site, ["network_cut", "clock_jumped"])


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_many_crashes_on_sqlite(tmp_path):
    with sqlite_site(tmp_path, seeded()) as site:
        torture(site, at_random(site, ON_SQLITE))


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_many_crashes_of_two_workers_on_postgres(tmp_path):
    with postgres_site(tmp_path, seeded()) as site:
        torture(site, at_random(site, ON_POSTGRES))


@pytest.mark.torture
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("make", [sqlite_site, postgres_site])
def test_dead_at_every_named_step(tmp_path, make):
    with make(tmp_path, seeded()) as site:
        torture(site, (f"step_reached:{step}" for step in STEPS))


@pytest.mark.torture
@pytest.mark.timeout(900)
@pytest.mark.parametrize("make", [sqlite_site, postgres_site])
def test_disks_that_fill_up(tmp_path, make):
    with make(tmp_path, seeded(), disk_mib=400) as site:
        torture(site, ["disk_filled"] * 10)


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_two_nodes_of_two_workers_for_long(tmp_path):
    with postgres_site(tmp_path, seeded(), nodes=2, workers=2, apart=True) as site:
        torture(site, at_random(site, ON_NODES, float("inf")), pace_s=0.05)


def at_random(site: Site, weights: dict[str, int], kills: float = KILLS) -> Iterator[str]:
    until = time.monotonic() + MINUTES * 60
    while site.kills < kills and time.monotonic() < until:
        (fault,) = site.dice.choices(list(weights), list(weights.values()))
        yield fault
