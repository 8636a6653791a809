"""Somebody with root, the database and sometimes the key attacks the log of a real node: each attack is caught, by the
mechanism that docs/audit-threat-model.md names, in the words it quotes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node_process import NodeProcess
from tests.postgres_server import PostgresServer
from tests.system.attacks import scene as scenes
from tests.system.attacks.auditor import aimx
from tests.system.attacks.deeds import ATTACKS, DOCUMENT, Attack, filled
from tests.system.attacks.scene import Scene


@pytest.fixture(scope="module")
def witness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path_factory.mktemp("witness"), config='[domain."witness.example"]\n') as running:
        yield running


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.torture)])
def scene(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, witness: NodeProcess
) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "sqlite":
        yield scenes.made(request.param, folder, witness, None)
    else:
        with PostgresServer() as server:
            yield scenes.made(request.param, folder, witness, server)


def test_nothing_is_said_against_the_node_as_it_is(scene: Scene) -> None:
    said = aimx(scene.victim.data, "audit", "verify", "--checkpoint", str(scene.kept), "--vkeys", str(scene.vkeys))
    assert said.code == 0, said.text
    assert said.text.startswith("CONSISTENT, COMPLETE, ANCHORED("), said.text
    assert "WITNESSED 1/1" in said.text
    assert scene.check_receipt(scene.victim).text.startswith("VALID, INCLUDED")
    assert aimx(scene.victim.data, "audit", "check-mail", str(scene.mbox)).text.startswith("CONSISTENT")
    assert aimx(scene.victim.data, "audit", "verify", "--bundle", str(scene.export)).code == 0


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.deed.__name__)
def test_each_attack_is_caught_by_its_name(scene: Scene, attack: Attack, tmp_path: Path) -> None:
    said = attack.deed(scene, scene.copy(scene.victim, tmp_path / "victim"))
    assert (said.code, attack.missing(said)) == (attack.code, []), said.text[-3000:]


def test_the_document_says_what_was_shown_here() -> None:
    assert filled(DOCUMENT.read_text()) == DOCUMENT.read_text(), "python -m tests.system.attacks writes it anew"
