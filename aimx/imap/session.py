"""One IMAP session, without I/O: commands in, responses out, the store in between.

Rules of the state machine (RFC 3501 §3), all of it in this file:

1. `ALLOWED` says which command may come in which state; what is not there is answered BAD before it does anything.
2. In the clear nothing works but what leads out of it. There is no sign-in without TLS.
3. Commands run one after the other. Each ends in exactly one tagged response; errors of three kinds (`errors.py`)
   become one in `_serve`, and only there.
4. Before the tagged response the client is brought up to date (`View.announce`), without EXPUNGE where RFC 3501 §7.4.1
   forbids it.
5. A failure of ours ends a command, never a session of somebody else; `Bye` ends this one.
"""

import binascii
import logging
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple, Protocol

from aimx.identity.agents import Denied, Directory, Granted
from aimx.identity.sasl import MECHANISMS
from aimx.imap import command as commands
from aimx.imap import mailboxes, messages, response
from aimx.imap.command import Request, Simple, Unparsable, parse
from aimx.imap.errors import Bad, Bye, No
from aimx.imap.fetch import Structures
from aimx.imap.grammar import Limits, Raw, Refused
from aimx.imap.messages import Desk
from aimx.imap.trace import Origin, Trail, Verb, witness_opening
from aimx.imap.view import View
from aimx.intake.envelope import PART, HeaderTooLarge, Upload
from aimx.rate import Rate
from aimx.store.contract import (
    INBOX,
    SYSTEM_FLAGS,
    Agent,
    AlreadyExists,
    Full,
    MailboxKey,
    NotFound,
    OverQuota,
    Placed,
    Store,
    StoreError,
    TooManyKeywords,
    Unavailable,
)
from aimx.telemetry import metrics
from aimx.telemetry.span import Span, Tracer

log = logging.getLogger("aimx.imap")

COMMANDS = metrics.counter("aimx.imap.commands")  # verb, status: OK, NO, BAD
DURATION = metrics.histogram("aimx.imap.command.duration")
SIGN_INS = metrics.counter("aimx.auth.attempts")  # door, mechanism, outcome

MAX_RESPONSE = 12_288
"""Octets of one line of a SASL exchange."""
CLOSED = "this account was closed"
CHANGED = "your password was changed; sign in again"
MAX_FAILURES = 5
"""Failed sign-ins of one connection."""


# --- states ----------------------------------------------------------------------------------------------------------


class State(Enum):
    CLEAR = auto()
    """No TLS yet."""
    SECURE = auto()
    """TLS; nobody has signed in."""
    SIGNED_IN = auto()
    SELECTED = auto()
    LOGOUT = auto()


_ANY = frozenset({State.CLEAR, State.SECURE, State.SIGNED_IN, State.SELECTED})
_IN = frozenset({State.SIGNED_IN, State.SELECTED})
_SELECTED = frozenset({State.SELECTED})

ALLOWED: dict[str, frozenset[State]] = {
    **dict.fromkeys(("CAPABILITY", "NOOP", "LOGOUT", "ID"), _ANY),
    "STARTTLS": frozenset({State.CLEAR}),
    **dict.fromkeys(("AUTHENTICATE", "LOGIN"), frozenset({State.SECURE})),
    **dict.fromkeys(
        (
            "ENABLE", "SELECT", "EXAMINE", "CREATE", "DELETE", "RENAME", "SUBSCRIBE", "UNSUBSCRIBE", "LIST", "LSUB",
            "STATUS", "APPEND", "NAMESPACE", "IDLE",
        ),
        _IN,
    ),
    **dict.fromkeys(
        (
            "CHECK", "CLOSE", "UNSELECT", "EXPUNGE", "UID EXPUNGE", "SEARCH", "UID SEARCH", "FETCH", "UID FETCH",
            "STORE", "UID STORE", "COPY", "UID COPY", "MOVE", "UID MOVE",
        ),
        _SELECTED,
    ),
}  # fmt: skip

KEEPS_NUMBERS = frozenset({"FETCH", "STORE", "SEARCH"})
"""Commands during which no EXPUNGE may be sent (RFC 3501 §7.4.1)."""

EXTENSIONS = (
    "LITERAL+", "SASL-IR", "ID", "ENABLE", "IDLE", "NAMESPACE", "UIDPLUS", "MOVE", "UNSELECT", "CHILDREN",
    "SPECIAL-USE", "STATUS=SIZE",
)  # fmt: skip
"""RFC 7888, 4959, 2971, 5161, 2177, 2342, 4315, 6851, 3691, 3348, 6154, 8438."""


# --- what a session works with ---------------------------------------------------------------------------------------


class Wire(Protocol):
    """The peer, as the shell presents it. Waiting raises `Gone` when it leaves or is silent for too long."""

    @property
    def peer(self) -> str:
        """Its IP address."""

    @property
    def secure(self) -> bool: ...

    def write(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...
    def limit(self, limits: Limits) -> None:
        """What commands may have from now on, once the peer is known."""

    async def command(self) -> Raw | Refused:
        """The next command; asks for its literals as they come."""

    async def line(self, limit: int) -> bytes: ...
    async def line_or_poke(self, limit: int) -> bytes | None:
        """The next line; None when `poke` came first."""

    def poke(self) -> None:
        """Called on the event loop, at any time."""

    async def start_tls(self) -> None:
        """Forgets everything that came in the clear, then takes up TLS."""


class Gone(Exception):
    """The peer is no longer there."""


class Intake(Protocol):
    """Who takes messages in (`aimx.intake`)."""

    def upload(self) -> Upload: ...
    async def append(
        self, owner: str, folder: str, upload: Upload, flags: frozenset[str], internal_ms: int | None, span: Span
    ) -> Placed:
        """Raises NotFound, OverQuota, HeaderTooLarge."""


@dataclass(frozen=True, slots=True)
class Services:
    """What all sessions of a node share."""

    store: Store
    directory: Directory
    intake: Intake
    tracer: Tracer
    structures: Structures
    limits: Limits
    """Of commands, once somebody signed in."""
    node: str = "n1"
    max_errors: int = 20
    """Commands in a row that break the protocol."""
    changes: Rate | None = None
    """How often an agent may read content or change something: each leaves an event in the log."""


class Answer(NamedTuple):
    """The tagged OK of a command."""

    text: str
    code: str = ""


class Session:
    """From greeting to goodbye. `run` returns when the connection is to be closed."""

    def __init__(self, services: Services, wire: Wire) -> None:
        self._services = services
        self._store = services.store
        self._wire = wire
        self.state = State.SECURE if wire.secure else State.CLEAR
        self._agent: Agent | None = None
        self._view: View | None = None
        self._desk: Desk | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._stale = False
        """The mailbox changed since we last looked."""
        self._errors = 0
        self._failures = 0

    # --- the life of a session ---

    async def run(self) -> None:
        try:
            self._wire.write(f"* OK [CAPABILITY {self._capabilities()}] AIMX ready\r\n".encode("ascii"))
            while self.state is not State.LOGOUT:
                await self._wire.drain()
                await self._serve(await self._wire.command())
            await self._wire.drain()
        except Bye as bye:
            self._wire.write(f"* BYE {bye.text}\r\n".encode("ascii"))
        except Gone:
            pass
        finally:
            self._leave()

    async def _serve(self, raw: Raw | Refused) -> None:
        """One command, whatever becomes of it, ends in one tagged response."""
        started = time.monotonic()
        tag, name, status, done = b"*", "", "OK", Answer("")
        try:
            if isinstance(raw, Refused):
                raise Unparsable(raw.tag, raw.error)
            request = parse(raw)
            raw.parts.clear()
            tag, name = request.tag, request.name
            done = await self._obey(request)
        except Unparsable as error:
            tag = error.tag
            status, done = _refusal(error.error)
        except (Bad, No) as error:
            status, done = _refusal(error)
        except StoreError as error:
            status, done = _refusal(_of_store(error))
        except HeaderTooLarge:
            status, done = "NO", Answer("the header block is too large; shorten it", "LIMIT")
        except (Bye, Gone):
            raise
        except Exception:
            log.exception("IMAP command failed", extra={"command": name, "agent": self._agent and self._agent.address})
            status, done = "NO", Answer("we failed, it was logged; try again", "SERVERBUG")
        await self._up_to_date(name)
        self._wire.write(response.tagged(tag, status, done.text or f"{name} done", done.code))
        COMMANDS.labels(name or "?", status).add()
        DURATION.labels(name or "?").record(time.monotonic() - started)
        self._count(status)
        if name == "STARTTLS" and status == "OK":
            await self._start_tls()

    def _count(self, status: str) -> None:
        self._errors = self._errors + 1 if status == "BAD" else 0
        if self._errors >= self._services.max_errors:
            raise Bye("too many bad commands")

    async def _up_to_date(self, name: str) -> None:
        """Say what changed in the mailbox, as far as the command just run allows."""
        view = self._view
        if view is None:
            return
        try:
            if self._stale or name in ("NOOP", "CHECK"):
                await self._look(view)
        except Unavailable:
            self._stale = True  # said with the next command
        self._wire.write(view.announce(expunge=name not in KEEPS_NUMBERS, with_uid=name.startswith("UID ")))
        if view.gone:
            await self._wire.drain()
            raise Bye("the mailbox was deleted")

    async def _look(self, view: View) -> None:
        """Learn what the store knows that the client does not."""
        self._stale = False
        view.learn(await self._store.changes(view.mailbox.key, view.modseq, claim_recent=not view.read_only))

    async def _obey(self, request: Request) -> Answer:
        if self.state not in ALLOWED[request.name]:
            raise _not_now(self.state, request.name)
        if self._agent is not None:
            await self._still_welcome(self._agent)
        match request.command:
            case Simple(name):
                return await self._simple(name)
            case commands.Id():
                self._wire.write(b'* ID ("name" "AIMX")\r\n')
            case commands.Authenticate(mechanism, initial):
                return await self._authenticate(mechanism, initial)
            case commands.Login(user, password):
                return await self._login(user, password)
            case commands.Enable():
                self._wire.write(b"* ENABLED\r\n")
            case commands.Select():
                return await self._select(request.command)
            case commands.Append():
                self._slow_down()
                return await self._append(request.command)
            case commands.Fetch() | commands.Store() | commands.Search() | commands.Transfer() | commands.Expunge():
                if messages.is_witnessed(request.command):
                    self._slow_down()
                return Answer("", await self._on_messages(request.command))
            case _:
                await self._on_mailboxes(request.command)
        return Answer("")

    async def _still_welcome(self, agent: Agent) -> None:
        """Another password, disabling or removing an agent ends its sessions, at their next command at the latest."""
        why = unwelcome(agent, await self._services.directory.agent(agent.address))
        if why is not None:
            raise Bye(why)

    def _slow_down(self) -> None:
        rate = self._services.changes
        if rate is not None and (wait := rate.take(self._owner)):
            many = f"more than {rate.per_second:g} such commands a second"
            raise No(f"{many}, try again in {max(1, round(wait))} s", "LIMIT")

    def _leave(self) -> None:
        self.state = State.LOGOUT
        self._deselect()

    # --- commands of any state ---

    async def _simple(self, name: str) -> Answer:
        match name:
            case "CAPABILITY":
                self._wire.write(f"* CAPABILITY {self._capabilities()}\r\n".encode("ascii"))
            case "LOGOUT":
                self._wire.write(b"* BYE until next time\r\n")
                self._leave()
            case "STARTTLS":
                return Answer("begin TLS now")
            case "NAMESPACE":
                self._wire.write(b'* NAMESPACE (("" "/")) NIL NIL\r\n')
            case "CLOSE" | "UNSELECT":
                await self._close(expunge=name == "CLOSE")
            case "IDLE":
                await self._idle()
        return Answer("")

    def _capabilities(self) -> str:
        """In the clear only what is of use there; AUTH= no more once signed in."""
        words = ["IMAP4rev1", *EXTENSIONS, f"APPENDLIMIT={self._services.limits.message}"]
        if self.state is State.CLEAR:
            words += ["STARTTLS", "LOGINDISABLED"]
        elif self.state is State.SECURE:
            words += [f"AUTH={mechanism}" for mechanism in MECHANISMS]
        return " ".join(words)

    async def _start_tls(self) -> None:
        """After the tagged OK: RFC 3501 §6.2.1. What was known of the peer in the clear is forgotten."""
        await self._wire.drain()
        await self._wire.start_tls()
        self.state = State.SECURE
        self._errors = 0

    # --- signing in ---

    async def _login(self, user: bytes, password: bytes) -> Answer:
        try:
            name, secret = user.decode(), password.decode()
        except UnicodeDecodeError as error:
            raise Bad("user name and password are UTF-8") from error
        outcome = await self._services.directory.authenticate(name, secret, self._wire.peer, via="imap")
        return self._signed_in("LOGIN", outcome)

    async def _authenticate(self, mechanism: str, initial: bytes | None) -> Answer:
        """RFC 3501 §6.2.2, SASL-IR: RFC 4959."""
        dialog = self._services.directory.sign_in(mechanism, self._wire.peer, via="imap")
        if dialog is None:
            raise No("that mechanism is not offered", "CANNOT")
        outcome = await dialog.respond(None if initial is None else _unbase64(initial))
        while not isinstance(outcome, Granted | Denied):
            self._wire.write(b"+ " + b64encode(outcome.data) + b"\r\n")
            await self._wire.drain()
            line = await self._wire.line(MAX_RESPONSE)
            if line == b"*":
                raise Bad("sign-in cancelled")
            outcome = await dialog.respond(_unbase64(line))
        return self._signed_in(mechanism, outcome)

    def _signed_in(self, mechanism: str, outcome: Granted | Denied) -> Answer:
        if isinstance(outcome, Denied):
            SIGN_INS.labels("imap", mechanism, outcome.reason).add()
            self._failures += 1
            if self._failures >= MAX_FAILURES:
                raise Bye("too many failed sign-ins")
            if outcome.reason == "malformed":
                raise Bad("malformed sign-in")
            if outcome.reason == "throttled":
                raise No(f"too many failed sign-ins, try again in {outcome.wait:.0f} s", "LIMIT")
            raise No("wrong user name or password", "AUTHENTICATIONFAILED")
        SIGN_INS.labels("imap", mechanism, "ok").add()
        self._agent = outcome.agent
        self.state = State.SIGNED_IN
        self._wire.limit(self._services.limits)
        return Answer("signed in", f"CAPABILITY {self._capabilities()}")

    # --- choosing a mailbox ---

    @property
    def agent(self) -> Agent | None:
        """Who signed in, as it was then."""
        return self._agent

    @property
    def _owner(self) -> str:
        assert self._agent is not None
        return self._agent.address

    async def _select(self, command: commands.Select) -> Answer:
        # Also a SELECT that fails leaves no mailbox selected (RFC 3501 §6.3.1).
        self._deselect()
        box = await mailboxes.find(self._store, self._owner, command.mailbox)
        services = self._services
        origin = Origin(services.tracer, services.node, self._owner)
        await witness_opening(self._store, origin, (box.key.owner, box.name))
        # Listen first: what changes between the snapshot and now is looked up, never missed.
        self._unsubscribe = self._store.subscribe(box.key, self._changed)
        snapshot = await self._store.select(box.key, not command.examine)
        view = self._view = View(snapshot, command.examine)
        self._desk = Desk(self._store, self._wire, origin, services.structures, view)
        self.state = State.SELECTED
        self._wire.write(_selected(view, snapshot.keywords, snapshot.first_unseen, snapshot.uidnext))
        return Answer("", "READ-ONLY" if command.examine else "READ-WRITE")

    def _changed(self) -> None:
        """The store says that the mailbox changed; called on the event loop."""
        self._stale = True
        self._wire.poke()

    def _deselect(self) -> None:
        if self._unsubscribe is not None:
            self._unsubscribe()
        self._unsubscribe = self._view = self._desk = None
        self._stale = False
        if self.state is State.SELECTED:
            self.state = State.SIGNED_IN

    async def _close(self, expunge: bool) -> None:
        assert self._desk is not None
        if expunge:
            await messages.close(self._desk)
        self._deselect()

    # --- IDLE ---

    async def _idle(self) -> None:
        """RFC 2177. The store wakes us; nothing is asked on a clock."""
        self._wire.write(b"+ idling\r\n")
        while True:
            view = self._view
            if view is not None:
                if self._stale:
                    await self._look(view)
                self._wire.write(view.announce(expunge=True))
                if view.gone:
                    raise Bye("the mailbox was deleted")
            await self._wire.drain()
            line = await self._wire.line_or_poke(MAX_RESPONSE)
            if line is None:
                continue
            if line.upper() != b"DONE":
                raise Bad("expected DONE")
            return

    # --- commands on mailboxes and messages ---

    async def _on_mailboxes(self, command: commands.Command) -> None:
        store, owner = self._store, self._owner
        match command:
            case commands.List(subscribed=False):
                self._wire.write(await mailboxes.list_mailboxes(store, owner, command))
            case commands.List():
                self._wire.write(await mailboxes.list_subscribed(store, owner, command))
            case commands.Status():
                self._wire.write(await mailboxes.status(store, owner, command, self._services.limits.message))
            case commands.Create():
                await mailboxes.create(store, owner, command)
            case commands.Rename():
                await mailboxes.rename(store, owner, command)
            case commands.Subscribe():
                await mailboxes.subscribe(store, owner, command)
            case commands.Delete(name):
                await self._delete(name)
            case _:
                raise AssertionError("a command nobody takes")

    async def _delete(self, name: str) -> None:
        if name == INBOX:
            raise No("INBOX cannot be deleted", "CANNOT")
        box = await mailboxes.find(self._store, self._owner, name)
        trail = self._trail_of("expunge", box.key, box.name)
        await self._store.delete_mailbox(box.key, trail.expunged)
        trail.end("OK")
        if self._view is not None and self._view.mailbox.key == box.key:
            self._deselect()

    def _trail_of(self, verb: Verb, key: MailboxKey, name: str) -> Trail:
        return Trail(Origin(self._services.tracer, self._services.node, self._owner), verb, key, name)

    async def _on_messages(
        self,
        command: commands.Fetch | commands.Store | commands.Search | commands.Transfer | commands.Expunge,
    ) -> str:
        desk, view = self._desk, self._view
        assert desk is not None
        assert view is not None
        match command:
            case commands.Fetch():
                return await messages.fetch(desk, command)
            case commands.Search():
                return await messages.search(desk, command)
            case commands.Store():
                if self._stale:
                    await self._look(view)  # see View.tell: silence needs to know what came before
                code = await messages.store(desk, command)
            case commands.Transfer():
                code = await messages.transfer(desk, command)
            case commands.Expunge():
                code = await messages.expunge(desk, command)
        self._stale = True  # our own change is told with this command's answer, whenever the store notifies
        return code

    async def _append(self, command: commands.Append) -> Answer:
        """RFC 3501 §6.3.11; APPENDUID: RFC 4315 §3."""
        if not command.message:
            raise No("there is nothing to append", "CANNOT")
        box = await mailboxes.find(self._store, self._owner, command.mailbox, "TRYCREATE")
        trail = self._trail_of("append", box.key, box.name)
        upload = self._services.intake.upload()
        taken = False
        try:
            octets = memoryview(command.message)
            for start in range(0, len(octets), PART):
                upload.write(bytes(octets[start : start + PART]))
                if upload.full and len(octets) > PART:
                    await upload.spill()
            span = trail.appended(command.message[:PART])
            placed = await self._services.intake.append(
                self._owner, box.name, upload, command.flags, command.internal_ms, span
            )
            taken = self._stale = True
        except NotFound as error:
            raise No("there is no such mailbox", "TRYCREATE") from error
        finally:
            if not taken:
                await upload.discard()
            trail.end("OK" if taken else "NO")
        return Answer("", f"APPENDUID {placed.uidvalidity} {placed.uid}")


# --- helpers ---------------------------------------------------------------------------------------------------------


def unwelcome(then: Agent, now: Agent | None) -> str | None:
    """Why who signed in as `then` must leave, or None; `now` is what is known of the agent now."""
    if now is None or now.disabled:
        return CLOSED
    return CHANGED if now.credential != then.credential else None


def _selected(view: View, keywords: tuple[str, ...], first_unseen: int | None, uidnext: int) -> bytes:
    """The untagged responses of SELECT (RFC 3501 §6.3.1)."""
    flags = " ".join((*SYSTEM_FLAGS, *keywords)).encode("ascii", "replace")
    lines = [
        b"* FLAGS (%b)" % flags,
        b"* OK [PERMANENTFLAGS (%b)] kept" % (b"" if view.read_only else flags + b" \\*"),
        b"* %d EXISTS" % len(view.uids),
        b"* %d RECENT" % view.recent_count(),
    ]
    number = view.number(first_unseen) if first_unseen is not None else None
    if number is not None:
        lines.append(b"* OK [UNSEEN %d] the first unseen" % number)
    lines.append(b"* OK [UIDVALIDITY %d] valid" % view.mailbox.uidvalidity)
    lines.append(b"* OK [UIDNEXT %d] next" % uidnext)
    return b"\r\n".join(lines) + b"\r\n"


def _unbase64(text: bytes) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Bad("not BASE64") from error


def _not_now(state: State, name: str) -> Bad:
    match state:
        case State.CLEAR:
            return Bad("STARTTLS first")
        case State.SECURE if name != "STARTTLS":
            return Bad("sign in first")
        case State.SIGNED_IN if ALLOWED[name] == _SELECTED:
            return Bad("select a mailbox first")
        case _:
            return Bad("not in this state")


def _refusal(error: Bad | No) -> tuple[str, Answer]:
    if isinstance(error, Bad):
        return "BAD", Answer(error.text)
    return "NO", Answer(error.text, error.code)


def _of_store(error: StoreError) -> No:
    """What the store refuses, in RFC 5530's words."""
    match error:
        case NotFound():
            return No("there is no such mailbox", "NONEXISTENT")
        case AlreadyExists():
            return No("that mailbox exists already", "ALREADYEXISTS")
        case OverQuota():
            return No("no room is left", "OVERQUOTA")
        case TooManyKeywords():
            return No("too many different keywords", "LIMIT")
        case Full():
            return No("no room is left on the node's disk, try again later", "UNAVAILABLE")
        case Unavailable():
            return No("nothing can be stored or read now, try again", "UNAVAILABLE")
        case _:
            return No("that cannot be done", "CANNOT")
