"""Fixtures that all layers share. One node serves a whole test file; each test adds agents of its own."""

import asyncio
import itertools
from collections.abc import Callable, Iterator, Mapping

import pytest
import uvloop

from tests.node_process import Account, NodeProcess

_numbers = itertools.count(1)


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the loop the node runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """A running node; at the end it must leave in time, with exit code 0 and without a line of trouble in its log."""
    with NodeProcess(tmp_path_factory.mktemp("node")) as running:
        yield running
    trouble = [line for line in running.lines() if line["level"] in ("error", "critical")]
    assert not trouble, trouble[:3]


@pytest.fixture
def new_agent(node: NodeProcess) -> Callable[..., Account]:
    """`new_agent("critic")`: an account whose name nobody else in this file has."""

    def add(name: str = "agent", *options: str) -> Account:
        return node.add_agent(f"{name}{next(_numbers)}", *options)

    return add
