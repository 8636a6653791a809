"""What each SMTP command means, when it may come, and what is answered. No sockets here.

The session takes the core's events one after another and appends its replies to `out`. Where it must wait, for the
directory, for intake or for the store, `receive` returns an awaitable; the server awaits it before the next event.

State, and who may do what in it:

| state | reached by | allowed beside NOOP and QUIT |
|---|---|---|
| clear | connecting | EHLO, STARTTLS (RFC 3207 §4); at a door without TLS: as signed in |
| secured | TLS | EHLO, HELO, RSET, VRFY, HELP; after EHLO: AUTH |
| signed in | AUTH; at the doors of peers and strangers: TLS | EHLO, HELO, RSET, VRFY, HELP, MAIL |
| mail | MAIL | RSET, EHLO, VRFY, HELP, RCPT |
| rcpt | an accepted RCPT | the same, and DATA |
| data | DATA | the message, then back to signed in |

Policy: an agent sends as itself only (`identity.sender`), a peer as whomever, since it answers for its own; each to
whom intake knows a way from this door. Who comes from a trusted network is the agent that MAIL names.
"""

import logging
import time
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from aimx.config import IpNetwork, Smtp
from aimx.identity.agents import Denied, Directory, Granted, SignInDialog
from aimx.identity.peers import Peers
from aimx.identity.sasl import MECHANISMS, Challenge
from aimx.identity.sender import envelope_refusal
from aimx.intake.envelope import Envelope, HeaderTooLarge, Reply, SpanEvent, Upload
from aimx.intake.pressure import counted, of_store
from aimx.network import contains
from aimx.rate import Rate
from aimx.smtp import parameters
from aimx.smtp.address import BadParameter, BadPath, Path, parse_path
from aimx.smtp.budget import ByteBudget
from aimx.smtp.core import MAX_DATA_LINE, NONE, Chunk, EndOfData, Event, Fault, Line, Receiver
from aimx.smtp.errors import ProtocolError, Refused
from aimx.smtp.parameters import MailParameters
from aimx.store.contract import Agent, Unavailable
from aimx.telemetry import metrics
from aimx.telemetry.context import Door as Trust

log = logging.getLogger("aimx.smtp")

SIGN_INS = metrics.counter("aimx.auth.attempts")  # door, mechanism, outcome
SPOKEN = metrics.counter("aimx.smtp.commands")  # verb, class of the reply

MAX_REPLY_TEXT = 450
"""Octets of text in one reply line; with code, enhanced code and CRLF within the 512 of RFC 5321 §4.5.3.1.5."""
MAX_AUTH_FAILURES = 3
MAX_HOST = 255
DRAINED = 2
"""A refused message is read to its end, so that its sender hears why; but not past this many times the size limit."""
SMALL_CHUNK, GATHERED = 1024, 8192
"""Chunks under the first size are gathered up to the second: octets sent singly must not cost us an object each."""

# RFC 5321 §4.5.3.1.4: 512 with CRLF; RFC 1870 §3, 6152 §2, 6531 §3.4, 4954 §3, 6710 §5, 3461 §4 lengthen MAIL and RCPT.
MAX_LINE = 512
MAX_LINES = {b"MAIL": 512 + 26 + 17 + 10 + 500 + 15 + 115, b"RCPT": 512 + 10 + 28 + 547, b"AUTH": 12_288}


class Intake(Protocol):
    """What the session needs of `aimx.intake`."""

    def upload(self) -> Upload:
        """A place for one message's octets."""

    def admit(self, agent: str) -> Reply | None:
        """A refusal to be given at MAIL, or None."""

    def admit_stranger(self, host: str) -> Reply | None:
        """The same for somebody at this IP address who is no agent."""

    async def check_recipient(self, recipient: str, door: Trust) -> Reply | None:
        """A refusal to be given at RCPT, or None."""

    async def accept(self, envelope: Envelope) -> Reply:
        """Take the message over. A reply below 400 means it is durable, and the upload is intake's."""

    def refused(self, envelope: Envelope, reply: Reply) -> None:
        """A transaction ended without reaching `accept`: to be traced and counted."""


@dataclass(slots=True)
class Counters:
    """Since the start; read by the metrics callback."""

    connections: int = 0
    commands: int = 0
    protocol_errors: int = 0
    refusals: int = 0
    failures: int = 0
    timeouts: int = 0
    signed_in: int = 0
    sign_ins_failed: int = 0
    messages: int = 0
    messages_refused: int = 0
    octets: int = 0


@dataclass(slots=True)
class Door:
    """What all sessions of a node share."""

    domains: tuple[str, ...]
    settings: Smtp
    directory: Directory
    intake: Intake
    budget: ByteBudget
    pace: Rate | None = None
    """How fast an address may connect."""
    trust: Trust = Trust.AGENT
    """Who comes in here: agents sign in, peers show a certificate, strangers do neither."""
    peers: Peers | None = None
    """Whose certificates are known, at the door of peers."""
    clear: bool = False
    """Mail may come without TLS."""
    networks: tuple[IpNetwork, ...] = ()
    """Where there are any: only who comes from them is let in, as the agent that it says it is. TLS is not offered."""
    counters: Counters = field(default_factory=Counters)
    clear_ehlo: bytes = b""
    secure_ehlo: bytes = b""

    def __post_init__(self) -> None:
        common = ["PIPELINING", f"SIZE {self.settings.max_size}", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN"]
        clear = ["MT-PRIORITY", "HELP"] if self.networks else ["STARTTLS"]
        self.clear_ehlo = _lines(250, [self.domains[0], *common, *clear])
        match self.trust:
            case Trust.AGENT:
                more = [f"AUTH {' '.join(MECHANISMS)}", "MT-PRIORITY", "HELP"]
            case Trust.PEER:
                more = ["MT-PRIORITY", "HELP"]
            case Trust.STRANGER:
                more = ["HELP"]
        self.secure_ehlo = _lines(250, [self.domains[0], *common, *more])

    def admits(self, host: str) -> bool:
        """Whether somebody at this address may come in at all."""
        return not self.networks or contains(self.networks, host)

    @property
    def asks_for_proof(self) -> bool:
        """Who comes in has to prove who it is, and soon."""
        return self.trust is not Trust.STRANGER and not self.networks

    def recognise(self, certificate: bytes | None) -> str:
        """The peer whose certificate this is (DER); empty: nobody's."""
        return (self.peers.recognise(certificate) or "") if self.peers is not None and certificate else ""


class Peer(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(slots=True)
class Transaction:
    """From MAIL to the final dot."""

    sender: str
    asked: MailParameters
    started_ns: int
    recipients: dict[str, dict[str, str]] = field(default_factory=dict)
    """With what each was given (RFC 3461)."""
    events: list[SpanEvent] = field(default_factory=list)
    upload: Upload | None = None
    size: int = 0
    gathered: bytearray = field(default_factory=bytearray)
    charged: int = 0
    """Octets taken from the budget and not given back."""
    kept: int = 0
    """Of these, what stays in memory to the end although parts went to the store."""
    refusal: Reply | None = None
    """What the end of data will be answered; until then the data is thrown away."""
    turned_away: Reply | None = None
    """The last refusal of a recipient."""


class Session:
    """One client, from banner to farewell. STARTTLS ends a session's `clear` state by making a new session."""

    __slots__ = (
        "_agent",
        "_auth_failures",
        "_by_peer",
        "_commands",
        "_dialog",
        "_door",
        "_early",
        "_errors",
        "_esmtp",
        "_host",
        "_mechanism",
        "_peer",
        "_receiver",
        "_refusals",
        "_tls",
        "_transaction",
        "_verb",
        "closing",
        "out",
        "progress",
        "wants_tls",
    )

    def __init__(self, door: Door, receiver: Receiver, peer: Peer, tls: str | None, by_peer: str = "") -> None:
        """`tls`: the negotiated version, as `TLSv1.3`; None in the clear. `by_peer`: whom the certificate proves."""
        self._door = door
        self._receiver = receiver
        self._peer = peer
        self._tls = tls
        self._host = ""
        """What the client calls itself."""
        self._esmtp = False
        self._agent: Agent | None = None
        self._by_peer = by_peer
        self._dialog: SignInDialog | None = None
        self._mechanism = ""
        self._transaction: Transaction | None = None
        self._verb = "?"
        """The command in hand, of those we know."""
        self._early: list[SpanEvent] = []
        """Seen before MAIL."""
        self._commands = self._errors = self._refusals = self._auth_failures = 0
        self.out: list[bytes] = []
        """Replies not yet written."""
        self.closing = False
        """The last reply is in `out`; write it and close."""
        self.wants_tls = False
        """220 to STARTTLS is in `out`; write it, throw away what else came, and begin TLS."""
        self.progress = 0
        """Counts what brings a session forward, unlike NOOP or RSET; the idle timer looks at it."""

    # ── what the server asks ──

    @property
    def secure(self) -> bool:
        return self._tls is not None

    @property
    def signed_in(self) -> bool:
        return self._agent is not None or bool(self._by_peer or self._door.networks)

    @property
    def has_message(self) -> bool:
        """Data is coming in."""
        return self._receiver.in_data

    @property
    def received(self) -> int:
        """Octets of the message coming in."""
        return self._transaction.size if self._transaction else 0

    def greet(self) -> None:
        self.out.append(b"220 %b ESMTP AIMX\r\n" % self._door.domains[0].encode())

    def farewell(self, code: int, enhanced: str, text: str) -> None:
        """Say this and close."""
        self._say(code, enhanced, text)
        self.closing = True

    def receive(self, event: Event) -> Awaitable[None] | None:
        """Take one event. An awaitable must be awaited (through `finish`) before the next event."""
        before, waiting = len(self.out), None
        try:
            # Told apart by type, the commonest first; a `match` on patterns would cost a microsecond each.
            if type(event) is Line:
                waiting = self._line(event.text, event.fault)
            elif type(event) is Chunk:
                waiting = self._chunk(event.data)
            else:
                assert type(event) is EndOfData
                self.progress += 1
                waiting = self._end_of_data(event.fault)
        except Exception as error:
            self._failed(error)
        if waiting is None and len(self.out) > before:
            self._answered()
        return waiting

    async def finish(self, waiting: Awaitable[None]) -> None:
        """Await what `receive` returned."""
        before = len(self.out)
        try:
            await waiting
        except Exception as error:
            self._failed(error)
        if len(self.out) > before:
            self._answered()

    def _answered(self) -> None:
        SPOKEN.labels(self._verb, chr(self.out[-1][0])).value += 1

    async def abandon(self) -> None:
        """The connection is gone: give back what the session holds."""
        transaction = self._transaction
        self._drop()
        if transaction is not None:
            await self._release(transaction)

    def _failed(self, error: Exception) -> None:
        """The one place where each kind of error becomes a reply."""
        counters, settings = self._door.counters, self._door.settings
        match error:
            case ProtocolError():
                counters.protocol_errors += 1
                self._errors += 1
                self._say(*error.reply)
                if self._errors >= settings.max_errors:
                    self.farewell(421, "4.7.0", "too many errors, closing")
            case Refused():
                counters.refusals += 1
                self._refusals += 1
                self._say(*error.reply)
                if self._refusals > settings.max_recipients:
                    self.farewell(421, "4.7.0", "too many refusals, closing")
            case _:
                counters.failures += 1
                said = {"event": "smtp.failed", "peer": str(self._peer)}
                if isinstance(error, Unavailable):
                    log.warning("the store is unavailable", extra=said)
                else:
                    log.error("SMTP session failed", exc_info=error, extra=said)
                reply = of_store(error) if isinstance(error, Unavailable) else counted("failure", INTERNAL)
                if self._receiver.in_data and self._transaction:
                    # Answering now would put this reply in the place of the one to the final dot.
                    self._transaction.refusal = reply
                else:
                    self._say(*reply)

    # ── commands ──

    def _line(self, text: bytes, fault: Fault) -> Awaitable[None] | None:
        self._door.counters.commands += 1
        if fault is not NONE:
            self._dialog = None
            if fault is Fault.ENDLESS:
                self.farewell(500, "5.5.6", "line too long, closing")
                return None
            raise ProtocolError(500, "5.5.6" if fault is Fault.LONG_LINE else "5.5.2", fault_text(fault))
        if self._dialog is not None:
            return self._auth_response(text)
        self._commands += 1
        if self._commands > self._door.settings.max_commands:
            self.farewell(421, "4.7.0", "too many commands without a mail, closing")
            return None
        verb, _, rest = text.partition(b" ")
        verb = verb.upper()
        self._verb = VERBS.get(verb, "?")
        if len(text) + 2 > MAX_LINES.get(verb, MAX_LINE):
            raise ProtocolError(500, "5.5.6", "command line too long")
        command = COMMANDS.get(verb)
        if command is None:
            self._unknown(verb)
            return None
        if self._tls is None and verb not in IN_CLEAR and not self._door.clear:
            raise ProtocolError(530, "5.7.0", "must issue a STARTTLS command first")
        return command(self, _decoded(verb, rest))

    def _unknown(self, verb: bytes) -> None:
        if verb in FOREIGN:
            # What follows is no command: a browser made to speak to us, or (BDAT) a body we would take for commands.
            self.farewell(502, "5.5.1", "command not implemented, closing")
        elif verb in NOT_IMPLEMENTED:
            raise ProtocolError(502, "5.5.1", "command not implemented")
        else:
            raise ProtocolError(500, "5.5.1", "command not recognised")

    def _ehlo(self, argument: str) -> None:
        self._hello(argument)
        self._esmtp = True
        self.out.append(self._door.secure_ehlo if self._tls else self._door.clear_ehlo)

    def _helo(self, argument: str) -> None:
        self._hello(argument)
        self._esmtp = False
        self.out.append(b"250 %b\r\n" % self._door.domains[0].encode())

    def _hello(self, argument: str) -> None:
        if not argument or " " in argument or len(argument) > MAX_HOST or not argument.isprintable():
            raise ProtocolError(501, "5.5.4", "say your host name or address literal")
        if not self._host:
            self.progress += 1
        self._drop()  # RFC 5321 §4.1.4: as if RSET had come
        self._host = argument

    def _starttls(self, argument: str) -> None:
        if argument:
            raise ProtocolError(501, "5.5.4", "STARTTLS takes no argument")
        if self._tls is not None:
            raise ProtocolError(503, "5.5.1", "TLS is already active")
        if self._door.networks:
            raise ProtocolError(502, "5.5.1", "this door has no TLS")
        self._say(220, "2.0.0", "ready to start TLS")
        self.wants_tls = True

    def _noop(self, _argument: str) -> None:
        self.out.append(OK)

    def _rset(self, argument: str) -> None:
        if argument:
            raise ProtocolError(501, "5.5.4", "RSET takes no argument")
        self._drop()
        self.out.append(OK)

    def _vrfy(self, argument: str) -> None:
        if not argument:
            raise ProtocolError(501, "5.5.4", "VRFY needs a name")
        self._say(252, "2.5.0", "cannot verify; send mail and see")  # RFC 5321 §7.3: who exists is not for everybody

    def _help(self, _argument: str) -> None:
        self._say(214, "2.0.0", "see RFC 5321; sign in with AUTH, send as yourself")

    def _quit(self, _argument: str) -> None:
        self._drop()
        self.farewell(221, "2.0.0", "bye")

    # ── sign-in (RFC 4954) ──

    def _auth(self, argument: str) -> Awaitable[None]:
        if self._door.trust is not Trust.AGENT or self._door.networks:
            raise ProtocolError(502, "5.5.1", "nobody signs in here")
        if self._agent is not None:
            raise ProtocolError(503, "5.5.1", "already signed in")
        if not self._esmtp:
            raise ProtocolError(503, "5.5.1", "say EHLO first")
        mechanism, _, initial = argument.partition(" ")
        dialog = self._door.directory.sign_in(mechanism, self._peer.host, via="smtp")
        if dialog is None:
            raise ProtocolError(504, "5.5.4", "mechanism not offered")
        self._mechanism = mechanism.upper()
        response = None if not initial else b"" if initial == "=" else _unbase64(initial.encode())
        return self._auth_step(dialog, response)

    def _auth_response(self, text: bytes) -> Awaitable[None]:
        dialog, self._dialog = self._dialog, None
        assert dialog is not None
        if text == b"*":
            raise ProtocolError(501, "5.7.0", "sign-in cancelled")
        return self._auth_step(dialog, _unbase64(text))

    async def _auth_step(self, dialog: SignInDialog, response: bytes | None) -> None:
        match await dialog.respond(response):
            case Challenge(data):
                self._dialog = dialog
                self.out.append(b"334 " + b64encode(data) + b"\r\n")
            case Granted(agent):
                self._agent = agent
                self._commands = 0
                self.progress += 1
                self._door.counters.signed_in += 1
                SIGN_INS.labels("smtp", self._mechanism, "ok").add()
                self._note("smtp.auth", mechanism=self._mechanism)
                self._say(235, "2.7.0", "signed in")
            case Denied("malformed"):
                SIGN_INS.labels("smtp", self._mechanism, "malformed").add()
                raise ProtocolError(501, "5.5.2", "malformed response")
            case Denied(reason, wait):
                self._denied(reason, wait)

    def _denied(self, reason: str, wait: float) -> None:
        self._door.counters.sign_ins_failed += 1
        SIGN_INS.labels("smtp", self._mechanism, reason).add()
        self._auth_failures += 1
        if reason == "throttled":
            self._say(454, "4.7.0", f"too many failed sign-ins; try again in {int(wait) + 1} s")
        else:
            self._say(535, "5.7.8", "name or password is wrong")
        if self._auth_failures >= MAX_AUTH_FAILURES:
            self.farewell(421, "4.7.0", "too many failed sign-ins, closing")

    # ── the transaction ──

    def _mail(self, argument: str) -> Awaitable[None] | None:
        self._require_trust()
        if self._transaction is not None:
            raise ProtocolError(503, "5.5.1", "a mail is already begun; RSET to begin again")
        if argument[:5].upper() != "FROM:":
            raise ProtocolError(501, "5.5.4", "MAIL FROM:<address>")
        path = self._path(argument[5:])
        if self._door.networks:
            agent = path.address
        elif self._agent is not None:
            agent = self._agent.address
        else:
            ours = self._door.trust is Trust.STRANGER and path.domain in self._door.domains
            self._begin(path, f"who sends as {path.domain} signs in, and not here" if ours else None)
            return None
        known = self._door.directory.remembered(agent)
        if known is None:
            return self._begin_after_look_up(path, agent)
        self._begin_as(path, known[0])
        return None

    def _require_trust(self) -> None:
        """Whoever the door is for has to be proved by now."""
        match self._door.trust:
            case Trust.AGENT if not self.signed_in:
                raise ProtocolError(530, "5.7.0", "sign in first (AUTH)")
            case Trust.PEER if not self._by_peer:
                raise ProtocolError(530, "5.7.0", "this door is for peers, and your certificate is none of theirs")
            case _:
                pass

    async def _begin_after_look_up(self, path: Path, agent: str) -> None:
        self._begin_as(path, await self._door.directory.agent(agent))

    def _begin_as(self, path: Path, agent: Agent | None) -> None:
        """`agent`: as the directory has it now. Who was disabled or got another password sends no more."""
        if self._door.networks:
            if agent is None or agent.disabled:
                raise Refused(550, "5.7.1", "send as an agent: who comes from this network is believed its name")
            self._agent = agent
        assert self._agent is not None
        if agent is None or agent.disabled or agent.credential != self._agent.credential:
            self.farewell(421, "4.7.0", "your account was changed; sign in again")
            return
        self._begin(path, envelope_refusal(path.address, agent.address))

    def _begin(self, path: Path, refusal: str | None = None) -> None:
        """`refusal`: why this sender may not be named."""
        asked = parameters.of_mail(path.parameters, self._door.settings.max_size)
        self._require_utf8(path, asked.utf8)
        if refusal is not None:
            raise Refused(550, "5.7.1", refusal)
        if (later := self._too_much()) is not None:
            raise Refused(*later)
        self._transaction = Transaction(path.address, asked, time.time_ns())
        self._transaction.events, self._early = self._early, []
        self.progress += 1
        self.out.append(SENDER_OK)

    def _too_much(self) -> Reply | None:
        intake = self._door.intake
        if self._agent is not None:
            return intake.admit(self._agent.address)
        return intake.admit_stranger(self._peer.host) if self._door.trust is Trust.STRANGER else None

    def _rcpt(self, argument: str) -> Awaitable[None]:
        transaction = self._transaction
        if transaction is None:
            raise ProtocolError(503, "5.5.1", "MAIL comes first")
        if argument[:3].upper() != "TO:":
            raise ProtocolError(501, "5.5.4", "RCPT TO:<address>")
        path = self._path(argument[3:])
        if not path.address:
            raise ProtocolError(501, "5.1.3", "a recipient is never empty")
        reports = parameters.of_rcpt(path.parameters) if path.parameters else {}
        self._require_utf8(path, transaction.asked.utf8)
        return self._recipient(transaction, path, reports)

    async def _recipient(self, transaction: Transaction, path: Path, reports: dict[str, str]) -> None:
        refusal: Reply | None
        if len(transaction.recipients) >= self._door.settings.max_recipients:
            refusal = Reply(452, "4.5.3", "too many recipients")  # RFC 5321 §4.5.3.1.10
        else:
            refusal = await self._door.intake.check_recipient(path.address, self._door.trust)
        if refusal is not None:
            self._note("smtp.recipient_refused", code=refusal.code, enhanced=refusal.enhanced)
            transaction.turned_away = refusal
            raise Refused(*refusal)
        transaction.recipients.setdefault(path.address, reports)
        self.progress += 1
        self.out.append(RECIPIENT_OK)

    def _data(self, argument: str) -> None:
        if argument:
            raise ProtocolError(501, "5.5.4", "DATA takes no argument")
        transaction = self._transaction
        if transaction is None or not transaction.recipients:
            raise ProtocolError(503, "5.5.1", "no valid recipients")
        if self._door.budget.left <= 0:
            raise Refused(*counted("memory", OUT_OF_MEMORY))
        transaction.upload = self._door.intake.upload()
        self._receiver.begin_data()
        self.progress += 1
        self.out.append(b"354 end with <CRLF>.<CRLF>\r\n")

    def _chunk(self, data: bytes) -> Awaitable[None] | None:
        transaction, settings = self._transaction, self._door.settings
        assert transaction is not None
        transaction.size += len(data)
        self.progress += 1
        if transaction.refusal is not None:
            if transaction.size > DRAINED * settings.max_size:
                self.farewell(*transaction.refusal)
            return None
        if self._receiver.fault is not NONE:
            transaction.refusal = Reply(554, "5.6.0", fault_text(self._receiver.fault))
        elif transaction.size > settings.max_size:
            transaction.refusal = Reply(552, "5.3.4", f"a message has at most {settings.max_size} octets")
        elif not self._door.budget.take(len(data), self._owner):
            transaction.refusal = counted("memory", OUT_OF_MEMORY)
        else:
            transaction.charged += len(data)
            return self._write(transaction, data)
        return self._release(transaction)

    def _write(self, transaction: Transaction, data: bytes) -> Awaitable[None] | None:
        upload = transaction.upload
        assert upload is not None
        if len(data) < SMALL_CHUNK:
            transaction.gathered += data
            if len(transaction.gathered) < GATHERED:
                return None
        if transaction.gathered:
            data = bytes(transaction.gathered) if len(data) < SMALL_CHUNK else bytes(transaction.gathered) + data
            transaction.gathered.clear()
        upload.write(data)
        return self._spill(transaction, upload) if upload.full else None

    async def _spill(self, transaction: Transaction, upload: Upload) -> None:
        try:
            await upload.spill()
        except HeaderTooLarge:
            transaction.refusal = Reply(552, "5.3.4", "the header is too large")
            await self._release(transaction)
            return
        # The first part stays in memory as a sample, what came later is in the store now.
        transaction.kept = transaction.kept or transaction.charged
        self._door.budget.give(transaction.charged - transaction.kept, self._owner)
        transaction.charged = transaction.kept

    def _end_of_data(self, fault: Fault) -> Awaitable[None]:
        transaction, self._transaction = self._transaction, None
        assert transaction is not None
        self._commands = self._errors = 0
        if fault is not NONE and transaction.refusal is None:
            transaction.refusal = Reply(554, "5.6.0", fault_text(fault))
        if transaction.refusal is not None:
            return self._refuse(transaction, transaction.refusal)
        return self._deliver(transaction)

    async def _refuse(self, transaction: Transaction, reply: Reply) -> None:
        self._door.counters.messages_refused += 1
        self._door.intake.refused(self._envelope(transaction), reply)
        await self._release(transaction)
        raise Refused(*reply)

    def _drop(self) -> None:
        """Forget the transaction. One that ended because every recipient was refused leaves its trace."""
        transaction, self._transaction = self._transaction, None
        if transaction is not None and transaction.turned_away is not None and not transaction.recipients:
            self._door.intake.refused(self._envelope(transaction), transaction.turned_away)

    async def _deliver(self, transaction: Transaction) -> None:
        upload, counters = transaction.upload, self._door.counters
        assert upload is not None
        if transaction.gathered:
            upload.write(bytes(transaction.gathered))
            transaction.gathered.clear()
        envelope = self._envelope(transaction)
        try:
            reply = await self._door.intake.accept(envelope)
            if reply.accepted:
                transaction.upload = None  # not ours any more
        finally:
            await self._release(transaction)
        if not reply.accepted:
            counters.messages_refused += 1
            raise Refused(*reply)
        counters.messages += 1
        counters.octets += transaction.size
        self._say(*reply)

    def _envelope(self, transaction: Transaction) -> Envelope:
        return Envelope(
            agent=None if self._agent is None else self._agent.address,
            sender=transaction.sender,
            recipients=tuple(transaction.recipients),
            upload=transaction.upload or self._door.intake.upload(),
            peer=str(self._peer),
            helo=self._host,
            protocol=self._protocol(transaction.asked.utf8),
            tls=self._tls or "",
            started_ns=transaction.started_ns,
            door=self._door.trust,
            by_peer=self._by_peer,
            by_network=bool(self._door.networks),
            priority=transaction.asked.priority,
            reports={
                address: transaction.asked.reports | asked
                for address, asked in transaction.recipients.items()
                if asked or transaction.asked.reports
            },
            events=transaction.events,
        )

    async def _release(self, transaction: Transaction) -> None:
        """Give back memory and staged parts."""
        self._door.budget.give(transaction.charged, self._owner)
        transaction.charged = transaction.kept = 0
        transaction.gathered.clear()
        upload, transaction.upload = transaction.upload, None
        if upload is not None:
            await upload.discard()

    # ── helpers of the commands ──

    @property
    def _owner(self) -> str:
        """Whose share of the budget it is: an agent's, a peer's, or of all strangers at one address."""
        return self._by_peer or self._peer.host if self._agent is None else self._agent.address

    def _protocol(self, utf8: bool) -> str:
        """The `with` clause of Received (RFC 3848, RFC 6531 §4.3)."""
        security = ("S" if self._tls else "") + ("A" if self._agent is not None and not self._door.networks else "")
        return f"UTF8SMTP{security}" if utf8 else f"ESMTP{security}" if self._esmtp else "SMTP"

    def _path(self, argument: str) -> Path:
        try:
            return parse_path(argument, self._door.domains[0])
        except BadPath as error:
            raise ProtocolError(501, "5.1.3", str(error)) from None
        except BadParameter as error:
            raise ProtocolError(501, "5.5.4", str(error)) from None

    def _require_utf8(self, path: Path, utf8: bool) -> None:
        if not utf8 and not path.address.isascii():
            raise ProtocolError(553, "5.6.7", "an address beyond ASCII needs SMTPUTF8")  # RFC 6531 §3.5

    def _note(self, name: str, **attributes: str | int) -> None:
        """For the span of this transaction, or of the next."""
        event = SpanEvent(name, time.time_ns(), dict(attributes))
        (self._early if self._transaction is None else self._transaction.events).append(event)

    def _say(self, code: int, enhanced: str, text: str) -> None:
        self.out.append(_reply(code, enhanced, text))


# ── the tables ──

_Command = Callable[[Session, str], Awaitable[None] | None]

COMMANDS: dict[bytes, _Command] = {
    b"EHLO": Session._ehlo,
    b"HELO": Session._helo,
    b"STARTTLS": Session._starttls,
    b"AUTH": Session._auth,
    b"MAIL": Session._mail,
    b"RCPT": Session._rcpt,
    b"DATA": Session._data,
    b"RSET": Session._rset,
    b"NOOP": Session._noop,
    b"VRFY": Session._vrfy,
    b"HELP": Session._help,
    b"QUIT": Session._quit,
}
VERBS = {verb: verb.decode() for verb in COMMANDS}
IN_CLEAR = frozenset({b"EHLO", b"STARTTLS", b"NOOP", b"QUIT"})
"""RFC 3207 §4."""
NOT_IMPLEMENTED = frozenset({b"EXPN", b"TURN", b"ETRN", b"SEND", b"SOML", b"SAML", b"ATRN", b"BURL"})
FOREIGN = frozenset({b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT", b"DELETE", b"PATCH", b"BDAT"})
EIGHT_BIT = frozenset({b"MAIL", b"RCPT", b"VRFY"})
"""RFC 6531 §3.4."""

OK = b"250 2.0.0 OK\r\n"
SENDER_OK = b"250 2.1.0 sender OK\r\n"
RECIPIENT_OK = b"250 2.1.5 recipient OK\r\n"
INTERNAL = Reply(451, "4.3.0", "something failed here; try again")
OUT_OF_MEMORY = Reply(452, "4.3.1", "the node is receiving too much at once; try again")

_FAULT_TEXTS = {
    Fault.BARE_CR: "bare CR: a line ends with CRLF",
    Fault.BARE_LF: "bare LF: a line ends with CRLF",
    Fault.NUL: "NUL is not allowed",
    Fault.LONG_LINE: f"line too long (data: {MAX_DATA_LINE} octets); encode long lines as quoted-printable or base64",
    Fault.ENDLESS: "line too long",
}


def fault_text(fault: Fault) -> str:
    """What to tell the peer."""
    return "; ".join(_FAULT_TEXTS[one] for one in fault)


def _decoded(verb: bytes, rest: bytes) -> str:
    """The argument as text, without the space around it."""
    try:
        return rest.decode("utf-8" if verb in EIGHT_BIT else "ascii").strip(" ")
    except UnicodeDecodeError:
        raise ProtocolError(500, "5.5.2", "a command is ASCII, an address may be UTF-8") from None


def _unbase64(text: bytes) -> bytes:
    try:
        return b64decode(text, validate=True)
    except Base64Error:
        raise ProtocolError(501, "5.5.2", "a response is base64") from None


def _reply(code: int, enhanced: str, text: str) -> bytes:
    """A reply in as many lines as its text needs, each with its codes (RFC 2034 §3), to be written at once."""
    if len(text) <= MAX_REPLY_TEXT and text.isascii() and text.isprintable():
        return f"{code} {enhanced} {text}\r\n".encode("ascii")
    clean = "".join(c if " " <= c <= "~" else "?" for c in text)
    pieces = [clean[at : at + MAX_REPLY_TEXT] for at in range(0, len(clean), MAX_REPLY_TEXT)] or [""]
    return _lines(code, [f"{enhanced} {piece}" for piece in pieces])


def _lines(code: int, texts: list[str]) -> bytes:
    """RFC 5321 §4.2.1: a hyphen after the code on every line but the last."""
    last = len(texts) - 1
    return "".join(f"{code}{' ' if n == last else '-'}{text}\r\n" for n, text in enumerate(texts)).encode("ascii")
