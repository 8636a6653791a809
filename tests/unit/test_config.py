"""A wrong setting is named as the user wrote it, and the line says what to do."""

from pathlib import Path
from typing import Any

import pytest

from aimx.config import SettingError, load


def said(flags: dict[str, Any] | None = None, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(SettingError) as caught:
        load(flags or {}, environ or {})
    text = str(caught.value)
    assert "\n" not in text
    return text


def toml(folder: Path, text: str) -> dict[str, Any]:
    path = folder / "aimx.toml"
    path.write_text(text)
    return {"config": path}


@pytest.mark.parametrize(
    ("environ", "begins"),
    [
        ({"AIMX_LISTEN__SMTP": "nowhere"}, "AIMX_LISTEN__SMTP: 'nowhere' is not HOST:PORT"),
        ({"AIMX_SMTP__MAX_SIZE": "big"}, "AIMX_SMTP__MAX_SIZE: "),
        ({"AIMX_SMPT__MAX_SIZE": "1"}, "AIMX_SMPT: there is no such setting"),
        ({"AIMX_SMTP__MAX_SISE": "1"}, "AIMX_SMTP__MAX_SISE: there is no such setting"),
        ({"AIMX_DELIVERY__DEADLINE": "soon"}, "AIMX_DELIVERY__DEADLINE: 'soon' is not a duration"),
        ({"AIMX_SMTP": "1", "AIMX_SMTP__MAX_SIZE": "1000000"}, "AIMX_SMTP: is a section; "),
        ({"AIMX_SMTP__MAX_SIZE": "1000000", "AIMX_SMTP": "1"}, "AIMX_SMTP: is a section; "),
        ({"AIMX_SMTP": "1"}, "AIMX_SMTP: is a section; "),
    ],
)
def test_from_the_environment(environ: dict[str, str], begins: str) -> None:
    assert said(environ=environ).startswith(begins)


def test_from_a_flag() -> None:
    text = said({"listen": {"smtp": "nowhere"}}, {"AIMX_LISTEN__SMTP": "127.0.0.1:1"})
    assert text.startswith("--smtp (listen.smtp): 'nowhere' is not HOST:PORT")


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("[smtp]\nmax_size = 'big'", "smtp.max_size: "),
        ("[smtp]\nmax_sise = 1", "smtp.max_sise: there is no such setting"),
        ("smtp = 1", "smtp: is a section; "),
        ("[[route]]\nname = 'a'\nrefuse = 'x'\n[[route]]\nname = 'b'", "[[route]] 2: route 'b' does nothing"),
        ("[[route]]\nname = 'a b'\nrefuse = 'x'", "[[route]] 1, name: "),
        ("[[route]]\nname = 'a'\nto = 'pool'", "[[route]] 1, to: "),
        ("[[route]]\nname = 'a'\nto = 'pool:x'", "route 'a' goes to pool 'x', which is not there; add [pool.x]"),
        ("[route]\nname = 'a'", "route: write each rule under [[route]]"),
        ("[[route]]\nname = 'a'\nrefuse = 'x'\n[[route]]\nname = 'a'\nrefuse = 'y'", "two routes are called 'a'"),
        ("[pool.work]\nmembers = []", "pool.work.members: "),
        ("[pool.work]\nmembers = ['a', 3]", "pool.work.members 2: "),
        ("[pool.work]\nmembers = ['']", "pool.work.members 1: "),
        ("[pool.x]\nmembers = ['a']\n[list.x]\nmembers = ['a']", "pool 'x' and list 'x' have one name"),
        ("[pool.'A b']\nmembers = ['a']", 'pool."A b": '),
        ('[domain."fabric local"]', 'domain."fabric local": '),
        ('[domain."fabric.local".loop]\nmax_depth = -1', 'domain."fabric.local".loop.max_depth: '),
        ("[delivery]\ndeadline = inf", "delivery.deadline: "),
        ("[delivery]\nfirst_delay = nan", "delivery.first_delay: "),
        ("[delivery]\nfactor = inf", "delivery.factor: "),
        ("[delivery]\ndeadline = '99999999d'", "delivery.deadline: "),
        ("[delivery]\nfirst_delay = 0", "delivery.first_delay: "),
        ("[trusted]\nnetworks = ['0.0.0.0/0']", "trusted.networks 1: 0.0.0.0/0 is neither loopback nor private"),
        ("[trusted]\nnetworks = ['8.8.8.0/24']", "trusted.networks 1: "),
        ("[trusted]\nnetworks = ['10.0.0.0/7']", "trusted.networks 1: "),
        ("[listen]\nplain = '127.0.0.1:0'", "listen.plain opens a door for trusted networks, and none is named"),
        ("[listen]\nplain = '0.0.0.0:0'\n[trusted]\nnetworks = ['10.0.0.0/8']", "listen.plain: 0.0.0.0:0 is neither"),
    ],
)
def test_from_the_file(tmp_path: Path, text: str, begins: str) -> None:
    assert said(toml(tmp_path, text)).startswith(begins)


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = toml(tmp_path, "[smtp]\nmax_size = 100000\nmax_errors = 3\nmax_recipients = 100")
    environ = {"AIMX_SMTP__MAX_ERRORS": "4", "AIMX_SMTP__MAX_RECIPIENTS": "200", "AIMX_URL": "not a setting"}
    found = load(file | {"smtp": {"max_recipients": 300}, "listen": {"smtp": None}}, environ)
    assert (found.smtp.max_size, found.smtp.max_errors, found.smtp.max_recipients) == (100_000, 4, 300)
    assert found.listen.smtp.port == 2525


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("30s", 30), ("15m", 900), ("4h", 14_400), ("2d", 172_800)]
)
def test_durations(text: str, seconds: float) -> None:
    assert load({"delivery": {"deadline": text}}, {}).delivery.deadline == seconds


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert said({"config": tmp_path / "none.toml"}).startswith("config: there is no file")
    assert said({"config": tmp_path}).startswith("config: ")
    assert said(toml(tmp_path, "x = ")).startswith("config: ")
    (tmp_path / "bin.toml").write_bytes(b"\xff\xfe")
    assert said({"config": tmp_path / "bin.toml"}).startswith("config: ")
    assert said(toml(tmp_path, "x = " + "[" * 5000)).startswith("config: ")
