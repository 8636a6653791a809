"""Who the agent is and where its node listens: from a URL, a node's data folder or ready file, or the environment."""

import json
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from aimx.sdk.errors import NotConfigured

DEFAULT_SMTP = 2465
DEFAULT_IMAP = 2993
DEFAULT_DATA = "aimx-data"
VKEYS_FILE = "audit.vkeys"
"""The node's verifier keys, in its data folder: by them receipts are checked."""
READY_FILE = "ready.json"
"""Where a running node says how to reach it, in its data folder."""
STARTED_FILE = "started.json"
"""Where `aimx serve` says with which configuration and domains."""


class Door(NamedTuple):
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Account:
    """One agent at one node. The password never shows in a repr."""

    address: str
    password: str = field(repr=False)
    smtp: Door
    imap: Door
    ca: str | None = None
    """File with the certificate authority to trust, and no other. None: the system's."""
    http: Door | None = None
    """Where the node's log is served; only receipts need it."""
    vkeys: str | None = None
    """File with the node's verifier keys; only receipts need it."""

    @property
    def domain(self) -> str:
        return self.address.partition("@")[2]

    @property
    def name(self) -> str:
        return self.address.partition("@")[0]

    @property
    def url(self) -> str:
        """The account as one line for AIMX_URL. It holds the password."""
        query = {"smtp": str(self.smtp.port), "imap": str(self.imap.port)}
        given = {"http": str(self.http.port) if self.http else None, "ca": self.ca, "vkeys": self.vkeys}
        query |= {name: value for name, value in given.items() if value}
        host = f"[{self.smtp.host}]" if ":" in self.smtp.host else self.smtp.host
        who = f"{quote(self.address, safe='')}:{quote(self.password, safe='')}"
        return f"aimx://{who}@{host}?{urlencode(query, safe='/')}"

    def tls(self) -> ssl.SSLContext:
        """TLS 1.3 and nothing less, host name checked, only `ca` trusted when it is given."""
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except (OSError, ssl.SSLError):
            raise NotConfigured(
                f"the CA file {self.ca!r} cannot be read; it is tls/ca.pem in the node's data folder"
            ) from None
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return context


def find(
    where: str | os.PathLike[str] | None = None,
    *,
    agent: str | None = None,
    password: str | None = None,
    ca: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Account:
    """The account meant by what is given, else by the environment. Raises NotConfigured.

    `where` is an `aimx://` URL, a node's data folder, or its ready file; without it AIMX_URL, then AIMX_DATA, then
    `./aimx-data`. `agent`, `password` and `ca` override what a URL says and default to AIMX_ADDRESS, AIMX_PASSWORD
    and AIMX_CA. A bare agent name is completed with the node's domain.
    """
    env = os.environ if environ is None else environ
    place = os.fspath(where) if where is not None else env.get("AIMX_URL") or env.get("AIMX_DATA") or DEFAULT_DATA
    ca = os.fspath(ca) if ca is not None else None
    if "://" in place:
        return _from_url(place, agent, password, ca or env.get("AIMX_CA"))
    if not Path(place).exists() and (where is not None or "AIMX_URL" in env):
        raise NotConfigured(f"{place!r} is neither an aimx:// URL nor a node's folder; start one with `aimx serve`")
    agent = agent or env.get("AIMX_ADDRESS")
    password = password or env.get("AIMX_PASSWORD")
    if not agent or not password:
        what = "which agent" if not agent else f"the password of {agent}"
        raise NotConfigured(
            f"{what} is not known; set AIMX_URL (`aimx agent add NAME` prints it), or give agent= and password="
        )
    return _from_ready(Path(place), agent, password, ca or env.get("AIMX_CA"))


def _from_url(url: str, agent: str | None, password: str | None, ca: str | None) -> Account:
    form = "aimx://name%40domain:password@host?smtp=2465&imap=2993&ca=path"
    try:
        parts = urlsplit(url)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        smtp, imap = int(query.get("smtp", parts.port or DEFAULT_SMTP)), int(query.get("imap", DEFAULT_IMAP))
        http = int(query["http"]) if "http" in query else None
    except ValueError:
        raise NotConfigured(f"the URL does not read as {form}") from None
    address = agent or unquote(parts.username or "")
    password = password or unquote(parts.password or "")
    if parts.scheme != "aimx" or not parts.hostname or "@" not in address or not password:
        raise NotConfigured(f"the URL does not read as {form}")
    host = parts.hostname
    return Account(
        address.lower(),
        password,
        Door(host, smtp),
        Door(host, imap),
        query.get("ca") or ca,
        None if http is None else Door(host, http),
        query.get("vkeys"),
    )


def _from_ready(path: Path, agent: str, password: str, ca: str | None) -> Account:
    file = path / READY_FILE if path.is_dir() else path
    try:
        ready = json.loads(file.read_bytes())
        smtp, imap = _door(ready["smtps"]), _door(ready["imaps"])
    except FileNotFoundError:
        raise NotConfigured(
            f"no node runs in {str(path)!r} (no {READY_FILE} there); start one with `aimx serve --data {path}`"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise NotConfigured(f"{str(file)!r} is not a node's ready file") from None
    if "@" not in agent:
        agent = f"{agent}@{_domain(file, ready)}"
    http = str(ready.get("http", "")).removeprefix("https://")
    vkeys = file.with_name(VKEYS_FILE)
    return Account(
        agent.lower(),
        password,
        smtp,
        imap,
        ca or ready.get("ca"),
        _door(http) if http else None,
        str(vkeys.resolve()) if vkeys.exists() else None,
    )


def _domain(file: Path, ready: dict[str, Any]) -> str:
    """The node's first domain: from the ready file, else from what `aimx serve` leaves beside it."""
    try:
        domains = ready.get("domains") or json.loads(file.with_name(STARTED_FILE).read_bytes())["domains"]
        return str(domains[0])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        raise NotConfigured("the agent's full address is needed: name@domain") from None


def _door(value: str) -> Door:
    """`127.0.0.1:2465`, `[::1]:2465`. A node that listens everywhere is reached on loopback."""
    host, _, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    return Door({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), int(port))  # noqa: S104 — read, not bound
