"""Every setting of a node, in one typed model.

Sources, later ones win: defaults, ``aimx.toml``, ``AIMX_*`` environment (``AIMX_SMTP__MAX_SIZE=1000000``), command-line
flags. `load` raises `SettingError` with one line that names the setting and says how to mend it.
"""

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

KIB = 1024
MIB = 1024 * KIB
MX = "mx"
"""The relay that goes to whom DNS names for a domain."""


class SettingError(ValueError):
    """A wrong setting. The text is one line: the setting's name, what is wrong, what to do."""


class Endpoint(NamedTuple):
    """Where a listener binds. Port 0 asks the system for a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        return self.host == "localhost" or ip_address(self.host).is_loopback


def _endpoint(value: object) -> object:
    if not isinstance(value, str):
        return value
    host, colon, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{value!r} is not HOST:PORT; write for example 127.0.0.1:2525")
    if host != "localhost":
        try:
            ip_address(host)
        except ValueError:
            raise ValueError(f"{host!r} is not an IP address; write for example 127.0.0.1:{port}") from None
    return Endpoint(host, int(port))


_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _duration(value: object) -> object:
    return duration(value) if isinstance(value, str) else value


def duration(text: str) -> float:
    """Seconds out of `500ms`, `30s`, `15m`, `4h`, `2d`. Raises SettingError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise SettingError(f"{text!r} is not a duration; write for example 500ms, 30s, 15m, 4h or 2d")
    return float(match[1]) * _UNIT[match[2]]


def _domain(value: str) -> str:
    if len(value) > 255 or not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,62})(\.[a-z0-9]([a-z0-9-]{0,62}))*", value.lower()):
        raise ValueError(f"{value!r} is not a domain name; write for example fabric.local")
    return value.lower()


Address = Annotated[Endpoint, BeforeValidator(_endpoint)]
Seconds = Annotated[float, BeforeValidator(_duration), Field(gt=0, le=100 * 365 * 86400.0, allow_inf_nan=False)]
"""A duration in seconds; in text `500ms`, `30s`, `15m`, `4h`, `2d`."""
GROUP_NAME = r"^[a-z0-9][a-z0-9._+-]{0,63}$"
GroupName = Annotated[str, Field(pattern=GROUP_NAME)]
DomainName = Annotated[str, AfterValidator(_domain)]
IpNetwork = IPv4Network | IPv6Network


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Listen(_Section):
    """The doors. Loopback and unprivileged until told otherwise."""

    smtp: Address = Endpoint("127.0.0.1", 2525)
    smtps: Address = Endpoint("127.0.0.1", 2465)
    imap: Address = Endpoint("127.0.0.1", 2143)
    imaps: Address = Endpoint("127.0.0.1", 2993)
    http: Address = Endpoint("127.0.0.1", 8443)
    peer: Address | None = Field(None, description="other AIMX nodes; off until it is asked for")
    mx: Address | None = Field(None, description="the outside world: mail for served domains only")
    plain: Address | None = Field(None, description="without TLS and passwords, for `[trusted] networks` only")


INSIDE: tuple[IpNetwork, ...] = (
    IPv4Network("127.0.0.0/8"),
    IPv4Network("10.0.0.0/8"),
    IPv4Network("172.16.0.0/12"),
    IPv4Network("192.168.0.0/16"),
    IPv6Network("::1/128"),
    IPv6Network("fc00::/7"),
)
"""Loopback, and what is private (RFC 1918, RFC 4193)."""


def _inside(value: IpNetwork) -> IpNetwork:
    if not any(value.version == network.version and value.subnet_of(network) for network in INSIDE):  # type: ignore[arg-type]
        raise ValueError(f"{value} is neither loopback nor private; only those may be trusted")
    return value


class Trusted(_Section):
    """For devices and benchmarks that know neither TLS nor passwords: `[listen] plain` believes who they say to be."""

    networks: list[Annotated[IpNetwork, AfterValidator(_inside)]] = Field(
        default_factory=list, description="loopback and private networks whose hosts may send as any agent"
    )


class Mx(_Section):
    """The door of the outside world, `[listen] mx`."""

    tls: Literal["required", "opportunistic"] = Field(
        "required", description="a public MX may not require it (RFC 3207 §4): then `opportunistic`"
    )
    floor: Literal["1.2", "1.3"] = Field("1.3", description="the oldest TLS that will do")
    messages_per_minute: float | None = Field(
        300.0, gt=0, allow_inf_nan=False, description="from one address (IPv6: /64), as many at once; then 451"
    )


class LoopLimits(_Section):
    """When the loop guard warns and refuses (trace-context-over-mail: loops). Zero or None switches a rule off."""

    warn_depth: int = Field(16, ge=0)
    warn_repeats: int = Field(3, ge=0)
    max_depth: int = Field(64, ge=0)
    max_repeats: int = Field(6, ge=0)
    max_alternations: int = Field(12, ge=0)
    budget: int | None = Field(None, ge=1, description="messages a workflow may have in all")
    deadline: Seconds | None = Field(None, description="how long after its first message a workflow may go on")


class Domain(_Section):
    """One served domain."""

    loop: LoopLimits | None = None
    postmaster: str | None = Field(None, min_length=1, description="the agent that gets its postmaster's mail")


class Smtp(_Section):
    max_size: int = Field(50 * MIB, ge=64 * KIB, description="octets of one message (RFC 1870)")
    max_recipients: int = Field(1000, ge=100, description="RFC 5321 §4.5.3.1.8 asks for at least 100")
    max_commands: int = Field(10_000, ge=10, description="commands without a mail in one session")
    max_errors: int = Field(10, ge=1)
    max_connections_per_address: int = Field(2_000, ge=1)
    idle_timeout: Seconds = 300.0
    data_timeout: Seconds = Field(600.0, description="from DATA to the final dot, extended by steady progress")
    min_rate: int = Field(1 * KIB, ge=1, description="octets a second below which an upload is cut")
    byte_budget: int = Field(
        256 * MIB, ge=MIB, description="message octets in memory over all sessions, a quarter for one agent; then 452"
    )


class Imap(_Section):
    max_line: int = Field(64 * KIB, ge=8 * KIB)
    max_literal: int = Field(50 * MIB, ge=64 * KIB)
    max_errors: int = Field(20, ge=1)
    max_connections_per_address: int = Field(20_000, ge=1)
    login_timeout: Seconds = 60.0
    idle_timeout: Seconds = Field(1800.0, description="RFC 3501 §5.4: at least 30 minutes")


class SignIn(_Section):
    """Authentication failures: slow, counted, throttled."""

    delay: Seconds = Field(1.0, description="before every failed answer")
    max_failures: int = Field(
        10, ge=1, description="per address and per account within the window; then refused unheard"
    )
    window: Seconds = 300.0
    iterations: int = Field(4096, ge=4096, description="PBKDF2 rounds for SCRAM-SHA-256 (RFC 7677 §4: at least 4096)")


class Delivery(_Section):
    """Retry: delay(n) = min(max_delay, first_delay · factor^(n-1)) · (1 ± jitter), until the deadline."""

    first_delay: Seconds = 1.0
    factor: float = Field(2.0, ge=1, allow_inf_nan=False)
    max_delay: Seconds = 900.0
    jitter: float = Field(0.2, ge=0, lt=1)
    deadline: Seconds = Field(2 * 86400.0, description="after which the sender gets a DSN")
    warn_after: Seconds = Field(4 * 3600.0, description="after which the sender hears once that it still waits")
    lease: Seconds = 60.0
    concurrency: int = Field(16, ge=1)
    outbound_concurrency: int = Field(200, ge=1, description="attempts in hand that leave the node")
    destination_concurrency: int = Field(20, ge=1, description="attempts at one destination at a time, at the most")
    breaker_failures: int = Field(
        5, ge=1, description="of a destination, in a row, before it is left alone for a while"
    )
    breaker_delay: Seconds = Field(30.0, description="that while at first; it doubles up to breaker_max_delay")
    breaker_max_delay: Seconds = 600.0


class WitnessAsked(_Section):
    """One `[audit.witness.NAME]`: somebody who cosigns this node's checkpoints."""

    vkey: str = Field(min_length=1, description="the witness's verifier key")
    url: str | None = Field(None, pattern=r"^https?://.+$", description="where it takes add-checkpoint")
    mail: str | None = Field(None, pattern=r"^[^@\s]+@[^@\s]+$", description="or the mailbox of an AIMX node")
    ca: Path | None = Field(None, description="authority to trust for `url`, instead of the system's")
    every: Seconds | None = Field(None, description="instead of `witness_every`, or `mail_every` where it is by mail")

    @model_validator(mode="after")
    def _one_way(self) -> "WitnessAsked":
        if (self.url is None) == (self.mail is None):
            raise ValueError("a witness is reached in one way: give it `url` or `mail`")
        return self


class Cosigned(_Section):
    """One `[audit.cosign.NAME]`: a log of somebody else that this node is a witness of."""

    vkey: str = Field(min_length=1, description="the log's verifier key")


class Timestamp(_Section):
    url: str = Field(pattern=r"^https?://.+$", description="an RFC 3161 authority over HTTP")
    ca: Path = Field(description="certificates (PEM) of the authorities to trust")
    every: Seconds = 3600.0


class Limits(_Section):
    """What is too much. Past a limit the peer gets a temporary refusal that says why, and may come again."""

    queue: int = Field(1_000_000, ge=1, description="waiting deliveries; beyond, no message is taken that may wait")
    store_wait: Seconds = Field(10.0, description="a commit that takes longer: SMTP answers 451 until it is done")
    messages_per_second: float | None = Field(None, gt=0, allow_inf_nan=False, description="over SMTP, for each agent")
    message_burst: int = Field(100, ge=1, description="so many at once")
    connections_per_minute: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="for each address and protocol; as many at once"
    )
    changes_per_second: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="IMAP commands that read content or change, for each agent"
    )
    change_burst: int = Field(200, ge=1, description="so many at once")


class Database(_Section):
    url: str | None = Field(
        None,
        pattern=r"^postgres(ql)?://",
        description="`postgresql://USER:PASSWORD@HOST/NAME`: mail in a PostgreSQL that nodes share; else in the folder",
    )


class Idempotency(_Section):
    keep: Seconds = Field(86400.0, description="how long a sender's Idempotency-Key is remembered")


class Audit(_Section):
    database: str | None = Field(
        None,
        pattern=r"^postgres(ql)?://",
        description="`postgresql://aimx_seq@host/db`: the log in a PostgreSQL; else where the mail is",
    )
    shard: Literal["off", "1mo", "3mo", "6mo", "1y"] = Field(
        "off", description="a new log, with a new name and key, at the start of each such part of the year (UTC)"
    )
    shard_leaves: int | None = Field(None, ge=1000, description="and whenever one holds this many leaves")
    signer: Annotated[str, Field(pattern=r"^(file|agent:.*|exec:.+)$")] = Field(
        "file", description="where the log's next key is: `file`, `agent:SOCKET#NAME`, `exec:COMMAND`"
    )
    key_overlap: Seconds = Field(7 * 86400.0, description="how long a rotated log key signs beside the new one")
    integrate_within: Seconds = 0.2
    checkpoint_every: Seconds = 1.0
    heartbeat_every: Seconds = 3600.0
    max_lag: Seconds = Field(30.0, description="outbox older than this: SMTP answers 451")
    witness_every: Seconds = 60.0
    mail_every: Seconds = 3600.0
    mail_to: list[Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+$")]] = Field(
        default_factory=list, description="mailboxes elsewhere that get a checkpoint each `mail_every`"
    )
    policy: Path | None = Field(None, description="C2SP tlog-policy; without it: most of the witnesses")
    witness: dict[GroupName, WitnessAsked] = Field(default_factory=dict)
    cosign: dict[GroupName, Cosigned] = Field(default_factory=dict)
    timestamp: Timestamp | None = None


class Trace(_Section):
    max_idle: Seconds = Field(900.0, description="an attempt later than this after the last starts a new, linked trace")
    sdk: Literal["aimx", "stock"] = Field(
        "aimx", description="who exports spans: AIMX's own encoder, or opentelemetry-sdk, at several times the cost"
    )


class Rule(_Section):
    """One `[[route]]`: every condition given must hold; the first rule that holds decides.

    Patterns are shell globs (`*`, `?`, `[…]`), case-insensitive. `to` is `mailbox:NAME`, `pool:NAME`, `list:NAME`,
    `relay:NAME` (a `[relay.NAME]`, a `[peer.NAME]`, or `mx`), `webhook:NAME` or `lmtp:NAME`.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="a span's name has it: no spaces")
    recipient: str | None = None
    sender: str | None = None
    workflow: str | None = None
    agent: str | None = None
    header: dict[str, str] = Field(default_factory=dict)
    content_type: str | None = None
    larger_than: int | None = Field(None, ge=0)
    smaller_than: int | None = Field(None, ge=1)
    to: str | None = Field(None, pattern=r"^(mailbox|pool|list|relay|webhook|lmtp):.+$")
    refuse: str | None = Field(None, max_length=200)
    priority: int | None = Field(None, ge=-9, le=9)

    @model_validator(mode="after")
    def _one_outcome(self) -> "Rule":
        if self.to is not None and self.refuse is not None:
            raise ValueError(f"route {self.name!r} has both `to` and `refuse`; keep one")
        if self.to is None and self.refuse is None and self.priority is None:
            raise ValueError(f"route {self.name!r} does nothing; give it `to`, `refuse` or `priority`")
        return self


class Group(_Section):
    """The members of a pool or a list: agents' addresses or bare names of the default domain."""

    members: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)


RelayTls = Literal["none", "may", "encrypt", "verify"]
"""`none`: never; `may`: if it is offered, whoever's certificate it is; `encrypt`: or not at all; `verify`: and the
certificate must be the host's."""


class Smarthost(_Section):
    """`[relay.NAME]`: a server that takes mail from us and carries it on."""

    host: str = Field(min_length=1, max_length=255)
    port: int = Field(587, ge=1, le=65535)
    tls: RelayTls = "verify"
    implicit_tls: bool = Field(False, description="TLS from the first octet on, as on port 465")
    ca: Path | None = Field(None, description="PEM of the authority to believe; else the system's")
    user: str | None = None
    password_file: Path | None = Field(None, description="a file that holds the password on its first line")
    domains: list[str] = Field(default_factory=list, description="patterns of the domains whose mail goes here unasked")

    @model_validator(mode="after")
    def _secrets_are_kept(self) -> "Smarthost":
        if (self.user is None) != (self.password_file is None):
            raise ValueError("user and password_file come together; give both or neither")
        if self.user is not None and self.tls in ("none", "may"):
            raise ValueError(f"a password does not go out under tls = {self.tls!r}; write encrypt or verify")
        return self


class Keep(_Section):
    """`[retention.NAME]`: how long mail is kept. Every condition given must hold; patterns are shell globs.

    Without `mailbox` a message is erased: content, addresses and keys, in every mailbox. With it, only the copies in
    mailboxes of that name are removed.
    """

    keep: Seconds = Field(description="since the message was accepted")
    workflow: str | None = None
    agent: str | None = Field(None, description="who sent or received it; with `mailbox`: whose mailbox too")
    mailbox: str | None = None


class Retention(_Section):
    """What becomes of old mail. `[retention.NAME]` are rules; without any, mail is kept for good."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Keep]

    every: Seconds = Field(3600.0, description="how often the node looks for what has come of age")

    @property
    def rules(self) -> dict[str, Keep]:
        return self.__pydantic_extra__ or {}

    @model_validator(mode="after")
    def _names(self) -> "Retention":
        for name in self.rules:
            if not re.fullmatch(GROUP_NAME, name):
                raise ValueError(f"{name!r} is no name for a rule; use a-z, 0-9 and . _ + -")
        return self


class Relay(_Section):
    """Mail that leaves the node for domains it does not serve. `[relay.NAME]` are smarthosts."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Smarthost]

    enabled: bool = Field(False, description="signed-in agents may write to domains that are not served here")
    via: str = Field("mx", description="the [relay.NAME] that takes it, or `mx`: whom DNS names for the domain")
    host_name: DomainName | None = Field(None, description="what the node calls itself in EHLO; else its first domain")
    port: int = Field(25, ge=1, le=65535, description="of MX hosts")
    tls: RelayTls = Field("may", description="towards MX hosts; MTA-STS may ask for more")
    mta_sts: bool = Field(True, description="RFC 8461: honour the policies that domains publish")
    trace_headers: bool = Field(True, description="traceparent and tracestate go out with the mail")
    ca: Path | None = Field(None, description="PEM of the authority to believe; else the system's")
    nameservers: list[str] = Field(default_factory=list, description="ADDRESS or ADDRESS:PORT; else the system's")
    allow_networks: list[IpNetwork] = Field(
        default_factory=list, description="loopback and private networks that an MX may lie in; else none"
    )
    connections: int = Field(10, ge=1, description="kept to one host, at the most")
    idle_timeout: Seconds = Field(30.0, description="how long a connection is kept for the next message")

    @model_validator(mode="after")
    def _names(self) -> "Relay":
        for name in self.smarthosts:
            if name == MX or not re.fullmatch(GROUP_NAME, name):
                raise ValueError(f"{name!r} is no name for a relay; use a-z, 0-9 and . _ + -, and not {MX!r}")
        return self

    @property
    def smarthosts(self) -> dict[str, Smarthost]:
        return self.__pydantic_extra__ or {}


class Peer(_Section):
    """`[peer.NAME]`: another AIMX node. What it says of traces is believed, and we are believed there."""

    domains: list[str] = Field(min_length=1, description="patterns of the domains it serves: their mail goes there")
    ca: Path = Field(description="PEM of its local authority, or of its certificate itself: nothing else is believed")
    host: str | None = Field(None, min_length=1, max_length=255, description="where it listens; none: it only sends")
    port: int = Field(2526, ge=1, le=65535)


WEBHOOK_SECRET = r"whsec_[A-Za-z0-9+/]{32,86}={0,2}"  # noqa: S105 — how one is written


class Webhook(_Section):
    """`[webhook.NAME]`: a URL that messages are posted to, signed by Standard Webhooks."""

    url: str = Field(pattern=r"^https?://[^/?#\s]+\S*$", description="http:// only within `networks`")
    secret: SecretStr | None = Field(
        None, description="`whsec_` and base64; two of them, a space between, while one replaces the other"
    )
    secret_file: Path | None = Field(None, description="or a file that holds them; read at each request")
    networks: list[IpNetwork] = Field(
        default_factory=list, description="loopback and private networks that the URL's host may lie in; else none"
    )
    ca: Path | None = Field(None, description="PEM of the authority to believe; else the system's")
    timeout: Seconds = Field(30.0, description="from looking up the host to the end of the answer")
    max_body: int = Field(MIB, ge=1, le=50 * MIB, description="octets; a message with more is not posted but refused")

    @model_validator(mode="after")
    def _signed_and_secret(self) -> "Webhook":
        if (self.secret is None) == (self.secret_file is None):
            raise ValueError("a webhook is signed: give it `secret` or `secret_file`, not both")
        words = [] if self.secret is None else self.secret.get_secret_value().split()
        if len(words) > 2 or not all(re.fullmatch(WEBHOOK_SECRET, word) for word in words):
            raise ValueError("a webhook's secret is `whsec_` and the base64 of 24 to 64 random octets; at most two")
        if self.url.startswith("http:") and not self.networks:
            raise ValueError("http:// shows everything to everybody on the way; write https://, or name its `networks`")
        return self


class Lmtp(_Section):
    """`[lmtp.NAME]`: a mail store that speaks LMTP (RFC 2033)."""

    host: str | None = Field(None, min_length=1, max_length=255)
    port: int = Field(24, ge=1, le=65535)
    socket: Path | None = Field(None, description="a Unix socket, instead of host and port")
    tls: RelayTls = Field("may", description="over TCP")
    ca: Path | None = Field(None, description="PEM of the authority to believe; else the system's")

    @model_validator(mode="after")
    def _one_place(self) -> "Lmtp":
        if (self.host is None) == (self.socket is None):
            raise ValueError("an LMTP store is at a `host` or a `socket`; give one of them")
        return self


class Settings(_Section):
    """All settings. The routing part (`routes`, `pools`, `lists`) is read again when the file changes."""

    data: Path = Path("./aimx-data")
    config: Path | None = None
    ready_file: Path | None = None
    node: str = Field("n1", pattern=r"^[a-z0-9-]{1,32}$", description="this node's name in leaves and headers")
    workers: int = Field(1, ge=1, le=64, description="processes of this node; more than one needs `database.url`")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    database: Database = Database()
    listen: Listen = Listen()
    domain: dict[DomainName, Domain] = Field(default_factory=dict)
    smtp: Smtp = Smtp()
    imap: Imap = Imap()
    sign_in: SignIn = SignIn()
    delivery: Delivery = Delivery()
    limits: Limits = Limits()
    mx: Mx = Mx()
    trusted: Trusted = Trusted()
    idempotency: Idempotency = Idempotency()
    retention: Retention = Retention()
    audit: Audit = Audit()
    trace: Trace = Trace()
    loop: LoopLimits = LoopLimits()
    workflow: dict[str, LoopLimits] = Field(default_factory=dict, description="loop limits by workflow pattern")
    agent: dict[str, LoopLimits] = Field(default_factory=dict, description="loop limits by agent pattern")
    routes: list[Rule] = Field(default_factory=list, alias="route")
    pools: dict[GroupName, Group] = Field(default_factory=dict, alias="pool")
    lists: dict[GroupName, Group] = Field(default_factory=dict, alias="list")
    relay: Relay = Relay()
    peers: dict[GroupName, Peer] = Field(default_factory=dict, alias="peer")
    webhooks: dict[GroupName, Webhook] = Field(default_factory=dict, alias="webhook")
    lmtps: dict[GroupName, Lmtp] = Field(default_factory=dict, alias="lmtp")

    @model_validator(mode="after")
    def _workers_share(self) -> "Settings":
        if self.workers > 1 and self.database.url is None:
            raise ValueError("workers: several processes need a database they share; give --database, or one worker")
        return self

    @model_validator(mode="after")
    def _targets_exist(self) -> "Settings":
        relays = {MX, *self.relay.smarthosts, *(name for name, peer in self.peers.items() if peer.host)}
        groups = {"pool": self.pools, "list": self.lists, "relay": relays, "webhook": self.webhooks, "lmtp": self.lmtps}
        names = [rule.name for rule in self.routes]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two routes are called {name!r}; rename one, for traces and logs go by the name")
        for name in self.pools.keys() & self.lists.keys():
            raise ValueError(f"pool {name!r} and list {name!r} have one name; rename one, or its mail would be guessed")
        for name in self.peers.keys() & {MX, *self.relay.smarthosts}:
            raise ValueError(f"a relay and a peer are both called {name!r}; rename one, for rules go by the name")
        if self.relay.via not in relays:
            raise ValueError(f"relay.via names {self.relay.via!r}, which is not there; add [relay.{self.relay.via}]")
        for rule in self.routes:
            kind, _, name = (rule.to or "").partition(":")
            if name not in groups.get(kind, (name,)):
                raise ValueError(
                    f"route {rule.name!r} goes to {kind} {name!r}, which is not there; add [{kind}.{name}]"
                )
        return self

    @model_validator(mode="after")
    def _plain_stays_inside(self) -> "Settings":
        plain = self.listen.plain
        if plain is None:
            return self
        if not self.trusted.networks:
            raise ValueError(
                "listen.plain opens a door for trusted networks, and none is named; add [trusted] networks"
            )
        address = ip_address("127.0.0.1" if plain.host == "localhost" else plain.host)
        if not any(address.version == network.version and address in network for network in INSIDE):
            raise ValueError(f"listen.plain: {plain} is neither loopback nor private; there is no TLS at this door")
        return self

    @property
    def log_database(self) -> str | None:
        """Where the audit log is, if not in the data folder."""
        return self.audit.database or self.database.url

    @property
    def domains(self) -> tuple[str, ...]:
        """The served domains; the first is the default one, in which bare agent names live."""
        return tuple(self.domain) or (DEFAULT_DOMAIN,)


DEFAULT_DOMAIN = "fabric.local"
_PREFIX = "AIMX_"
_NOT_SETTINGS = {"AIMX_URL", "AIMX_ADDRESS", "AIMX_PASSWORD", "AIMX_CA", "AIMX_FAILPOINT"}
"""Environment names that belong to the SDK, or to tests (`failpoint`), and not to a node's settings."""


def load(flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from file, environment and flags. `flags` is nested like the model; None values are left out."""
    env = _from_environment(os.environ if environ is None else environ)
    given = _without_none(flags or {})
    path = given.get("config") or env.get("config")
    merged = _merge(_merge(_from_file(Path(path)) if path else {}, env), given)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise SettingError(_explain(error, given, env)) from None


def _from_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise SettingError(f"config: there is no file {str(path)!r}; create it or leave --config out") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingError(f"config: {str(path)!r} is not valid TOML: {error}") from None
    except OSError as error:
        raise SettingError(f"config: {str(path)!r} cannot be read: {error.strerror}") from None


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in sorted(environ):  # a section's own name comes before what is in it
        if not name.startswith(_PREFIX) or name in _NOT_SETTINGS:
            continue
        *sections, last = name.removeprefix(_PREFIX).lower().split("__")
        place = found
        for depth, section in enumerate(sections, 1):
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise SettingError(_section(_variable(sections[:depth])))
        place[last] = environ[name]
    return found


def _without_none(flags: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: _without_none(value) if isinstance(value, Mapping) else value for name, value in flags.items()}
    return {name: value for name, value in kept.items() if value is not None and value != {}}


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        inner = merged.get(name)
        merged[name] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return merged


# ── errors, in the user's words ──────────────────────────────────────────────────────────────────────────────────────

_NOT_A_SECTION = frozenset({"model_type", "model_attributes_type", "dict_type"})


def _explain(error: ValidationError, flags: Mapping[str, Any], env: Mapping[str, Any]) -> str:
    first = error.errors(include_url=False)[0]
    path = [part for part in first["loc"] if part != "[key]"]  # pydantic's mark for a wrong key
    name = _spelled(path, flags, env)
    if first["type"] == "extra_forbidden":
        return f"{name}: there is no such setting; take it out or mend its spelling"
    if first["type"] in _NOT_A_SECTION:
        return _section(name)
    if path == ["route"] and first["type"] == "list_type":
        return f"{name}: write each rule under [[route]], with two brackets"
    message = first["msg"].removeprefix("Value error, ")
    message = f"{message[:1].lower()}{message[1:]}"
    return f"{name}: {message}" if name else message


def _section(name: str) -> str:
    return f"{name}: is a section; name the setting in it"


def _spelled(path: Sequence[str | int], flags: Mapping[str, Any], env: Mapping[str, Any]) -> str:
    """A setting as whoever set it wrote it: a flag, a variable, or its name in the file."""
    if held := _held(path, flags):
        flag = f"--{str(held[-1]).replace('_', '-')}"
        return flag if len(held) == 1 else f"{flag} ({'.'.join(map(str, held))})"
    if held := _held(path, env):
        return _variable(held)
    name = ""
    for part in path:
        if isinstance(part, int):
            name = f"[[route]] {part + 1}" if name == "route" else f"{name} {part + 1}"
        else:
            quoted = part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f'"{part}"'
            name += f"{', ' if name.startswith('[[') else '.' if name else ''}{quoted}"
    return name


def _held(path: Sequence[str | int], source: Mapping[str, Any]) -> Sequence[str | int]:
    """As much of the path as leads to a value of this source; empty when there is none."""
    place: Any = source
    for depth, part in enumerate(path):
        if not isinstance(place, Mapping):
            return path[:depth]
        if part not in place:
            return ()
        place = place[part]
    return path


def _variable(path: Sequence[str | int]) -> str:
    return _PREFIX + "__".join(map(str, path)).upper()
