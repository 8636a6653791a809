"""Where a node is and as whom: every way to say it, and a clear word when it is not said."""

import json
from pathlib import Path

import pytest

from aimx.sdk.account import Account, Door, find
from aimx.sdk.errors import NotConfigured

READY = {
    "smtps": "127.0.0.1:4465",
    "imaps": "0.0.0.0:4993",
    "ca": "/somewhere/ca.pem",
    "domains": ["fabric.local", "other.example"],
}


def test_a_url_says_it_all() -> None:
    account = find("aimx://Planner%40fabric.local:p%3Aw%2F%40@[::1]?smtp=1465&imap=1993&ca=/etc/ca.pem", environ={})
    assert account == Account("planner@fabric.local", "p:w/@", Door("::1", 1465), Door("::1", 1993), "/etc/ca.pem")


def test_a_url_made_is_a_url_read() -> None:
    account = Account("a.b+c@fabric.local", "p@ss/w:rd%&?#", Door("127.0.0.1", 1), Door("127.0.0.1", 2), "/a b/ca&.pem")
    assert find(account.url, environ={}) == account


def test_the_password_stays_out_of_sight() -> None:
    assert "geheim" not in repr(find("aimx://a%40b.c:geheim@127.0.0.1", environ={}))


def test_a_data_folder_and_its_ready_file_mean_the_same(tmp_path: Path) -> None:
    (tmp_path / "ready.json").write_text(json.dumps(READY))
    by_folder = find(tmp_path, agent="planner", password="x", environ={})
    assert by_folder == find(tmp_path / "ready.json", agent="planner@fabric.local", password="x", environ={})
    assert by_folder.address == "planner@fabric.local"
    assert by_folder.smtp == ("127.0.0.1", 4465)
    assert by_folder.imap == ("127.0.0.1", 4993)
    assert by_folder.ca == "/somewhere/ca.pem"


def test_the_environment_is_enough(tmp_path: Path) -> None:
    (tmp_path / "ready.json").write_text(json.dumps(READY))
    found = find(environ={"AIMX_DATA": str(tmp_path), "AIMX_ADDRESS": "critic@fabric.local", "AIMX_PASSWORD": "x"})
    assert (found.address, found.smtp.port) == ("critic@fabric.local", 4465)
    url = found.url
    assert find(environ={"AIMX_URL": url, "AIMX_DATA": "/nowhere"}) == found


@pytest.mark.parametrize(
    ("where", "environ", "says"),
    [
        (None, {}, "set AIMX_URL"),
        (None, {"AIMX_ADDRESS": "a@b.c"}, "password of a@b.c"),
        ("http://a%40b.c:x@h", {}, "aimx://name%40domain"),
        ("aimx://a%40b.c@h", {}, "aimx://name%40domain"),
        ("aimx://a:x@h", {}, "aimx://name%40domain"),
        ("aimx://a%40b.c:x@h?smtp=many", {}, "aimx://name%40domain"),
        ("/no/such/folder", {"AIMX_ADDRESS": "a@b.c", "AIMX_PASSWORD": "x"}, "aimx serve"),
    ],
)
def test_what_is_missing_is_said_in_one_line(where: str | None, environ: dict[str, str], says: str) -> None:
    with pytest.raises(NotConfigured, match=says) as caught:
        find(where, environ=environ)
    assert "\n" not in str(caught.value)


def test_a_missing_ca_is_named() -> None:
    account = find("aimx://a%40b.c:x@127.0.0.1?ca=/no/ca.pem", environ={})
    with pytest.raises(NotConfigured, match=r"/no/ca\.pem"):
        account.tls()
