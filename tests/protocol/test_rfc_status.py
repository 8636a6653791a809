"""What a live node announces is what docs/rfc-status.toml claims, no more and no less."""

import tomllib
from collections.abc import Callable
from pathlib import Path

from tests.node_process import Account, NodeProcess

RFCS = tomllib.loads((Path(__file__).parents[2] / "docs" / "rfc-status.toml").read_text())["rfc"]


def test_smtp_extensions(node: NodeProcess) -> None:
    with node.smtp() as client:
        client.ehlo()
        announced = {name.upper() for name in client.esmtp_features}
    assert announced == {name for rfc in RFCS for name in rfc.get("ehlo", ())}


def test_imap_capabilities(node: NodeProcess, new_agent: Callable[..., Account]) -> None:
    claimed = {name.upper() for rfc in RFCS for name in rfc.get("capability", ())}
    with node.imap(new_agent(), None) as client:
        announced = {name.partition("=")[0] if name.startswith("APPENDLIMIT=") else name for name in greeting(client)}
        after = {name.partition("=")[0] if name.startswith("APPENDLIMIT=") else name for name in now(client)}
    assert announced == claimed
    assert after == {name for name in claimed if not name.startswith("AUTH=")}


def greeting(client: object) -> set[str]:
    return {name.upper() for name in client.capabilities}  # type: ignore[attr-defined]


def now(client: object) -> set[str]:
    _, answer = client.capability()  # type: ignore[attr-defined]
    return {name.upper() for name in answer[-1].decode().split()}
