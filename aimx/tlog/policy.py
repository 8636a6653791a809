"""Whose word is enough: which logs are known, which witnesses, and how many of them (https://c2sp.org/tlog-policy).

log <vkey> [<url>]
witness <name> <vkey> [<url>]
group <name> all|any|<k> <member> …
quorum <name of a witness or group>|none
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from aimx.tlog.errors import FormatError
from aimx.tlog.note import COSIGNATURE_V1, ED25519, Verifier

NONE = "none"
"""The quorum that asks for nobody."""
MAX_LINES = 1000

_SPACE = re.compile(r"[ \t]+")


@dataclass(frozen=True, slots=True)
class Group:
    """Witnesses a checkpoint when at least `least` of its members do; a member is a witness or another group."""

    least: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """`witnesses` and `groups` share one space of names."""

    logs: tuple[Verifier, ...] = ()
    witnesses: Mapping[str, Verifier] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)
    quorum: str = NONE

    def satisfied(self, cosigners: Collection[Verifier]) -> bool:
        """Whether one checkpoint that these have cosigned has its quorum."""
        return self.quorum == NONE or self._witnesses(self.quorum, frozenset(cosigners))

    def _witnesses(self, name: str, cosigners: frozenset[Verifier]) -> bool:
        if (witness := self.witnesses.get(name)) is not None:
            return witness in cosigners
        group = self.groups[name]
        return sum(self._witnesses(member, cosigners) for member in group.members) >= group.least

    def text(self) -> str:
        lines = [f"log {log.vkey()}" for log in self.logs]
        lines += [f"witness {name} {witness.vkey()}" for name, witness in self.witnesses.items()]
        lines += [f"group {name} {group.least} {' '.join(group.members)}" for name, group in self.groups.items()]
        return "".join(line + "\n" for line in (*lines, f"quorum {self.quorum}"))


def of_witnesses(log: Verifier, witnesses: Mapping[str, Verifier]) -> Policy:
    """The policy of whoever has written none: a majority of the witnesses that are known."""
    if not witnesses:
        return Policy((log,))
    group = Group(len(witnesses) // 2 + 1, tuple(witnesses))
    return Policy((log,), witnesses, {"majority": group}, "majority")


def parse(data: bytes) -> Policy:
    """Read a policy file. Raises FormatError, which names the line."""
    if any((octet < 0x20 and octet not in b"\t\n") or octet == 0x7F for octet in data):
        raise FormatError("a policy holds no control characters but tabs and newlines")
    reading = _Reading()
    # Names are opaque octets: what is not UTF-8 is kept as it is.
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    if len(lines) > MAX_LINES:
        raise FormatError(f"a policy of more than {MAX_LINES} lines")
    for number, line in enumerate(lines, 1):
        words = _SPACE.split(line.strip(" \t"))
        if words == [""] or words[0].startswith("#"):
            continue
        read = reading.kinds.get(words[0])
        if read is None:
            raise FormatError(f"line {number}: {words[0]!r} is neither log, witness, group nor quorum")
        try:
            read(words[1:])
        except FormatError as error:
            raise FormatError(f"line {number}: {error}") from None
    if reading.quorum is None:
        raise FormatError("a policy has exactly one quorum line")
    return Policy(tuple(reading.logs), reading.witnesses, reading.groups, reading.quorum)


class _Reading:
    """What was read so far: a line may only name what stands above it."""

    def __init__(self) -> None:
        self.logs: list[Verifier] = []
        self.witnesses: dict[str, Verifier] = {}
        self.groups: dict[str, Group] = {}
        self.quorum: str | None = None
        self._members: set[str] = set()
        self.kinds: dict[str, Callable[[list[str]], None]] = {
            "log": self._log,
            "witness": self._witness,
            "group": self._group,
            "quorum": self._quorum,
        }

    def _log(self, words: list[str]) -> None:
        if len(words) not in (1, 2):
            raise FormatError("write: log VKEY [URL]")
        key = _key(words[0], ED25519, "a log signs by")
        if any(key.public == log.public for log in self.logs):
            raise FormatError("this log's key stands here twice")
        self.logs.append(key)

    def _witness(self, words: list[str]) -> None:
        if len(words) not in (2, 3):
            raise FormatError("write: witness NAME VKEY [URL]")
        key = _key(words[1], COSIGNATURE_V1, "a witness cosigns by")
        if any(key.public == witness.public for witness in self.witnesses.values()):
            raise FormatError("this witness's key stands here twice")
        self.witnesses[self._new(words[0])] = key

    def _group(self, words: list[str]) -> None:
        if len(words) < 3:
            raise FormatError("write: group NAME all|any|K MEMBER …")
        name, least, *members = words
        for member in members:
            self._known(member)
            if member in self._members:
                raise FormatError(f"{member!r} is a member already, and can count once only")
            self._members.add(member)
        count = {"all": len(members), "any": 1}.get(least)
        if count is None:
            if not re.fullmatch(r"[1-9][0-9]{0,3}", least) or int(least) > len(members):
                raise FormatError(f"{least!r} is neither all, any nor a number from 1 to {len(members)}")
            count = int(least)
        self.groups[self._new(name)] = Group(count, tuple(members))

    def _quorum(self, words: list[str]) -> None:
        if self.quorum is not None:
            raise FormatError("a policy has exactly one quorum line")
        if len(words) != 1:
            raise FormatError("write: quorum NAME")
        if words[0] != NONE:
            self._known(words[0])
        self.quorum = words[0]

    def _new(self, name: str) -> str:
        if name == NONE or name in self.witnesses or name in self.groups:
            raise FormatError(f"the name {name!r} is taken")
        return name

    def _known(self, name: str) -> None:
        if name not in self.witnesses and name not in self.groups:
            raise FormatError(f"there is no witness or group {name!r} above")


def _key(vkey: str, kind: bytes, what: str) -> Verifier:
    key = Verifier.parse(vkey)
    if key.kind != kind:
        raise FormatError(f"{what} a key of type {kind.hex()}, not {key.kind[:1].hex()}")
    return key
