"""Rules to decisions. The recipient is looked at first (an agent, a pool, a list, or nobody), then the rules in order.

The first rule that holds and has `to` or `refuse` decides; one that only has `priority` sets it and the search goes on.
With no such rule the recipient itself decides. A pool or list may name another one; the chain is followed at most
`MAX_HOPS` deep and never twice through the same name.

Mail for a domain that is not served here leaves the node: to the peer or smarthost that names the domain, else to the
default relay where `[relay]` is enabled, else not at all.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from aimx.config import MX, Rule, Settings
from aimx.message.header import HeaderBlock
from aimx.routing.pattern import matches

MAX_HOPS = 8

DecisionKind = Literal["mailbox", "pool", "list", "relay", "webhook", "lmtp", "refuse"]
TransportName = Literal["mailbox", "relay", "webhook", "lmtp"]
IsAgent = Callable[[str], bool]
"""Whether an address is an agent that takes mail (exists and is not disabled)."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What rules look at."""

    sender: str
    recipient: str
    workflow: str | None
    agent: str | None
    header: HeaderBlock
    content_type: str
    size: int
    key: str
    """What a message without a workflow is spread over a pool by: its event id."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One rule and why it held or did not."""

    rule: str
    holds: bool
    why: str


@dataclass(frozen=True, slots=True)
class Step:
    """One hop of a route."""

    rule: str
    """The rule's name, or `recipient` where the recipient itself decided."""
    decision: DecisionKind
    target: str
    """Address of a mailbox; name of a pool, list, relay, webhook or LMTP store; text of a refusal."""


@dataclass(frozen=True, slots=True)
class Landing:
    """One final recipient and the hops that led to it."""

    address: str
    steps: tuple[Step, ...]
    queue: str
    """The name of the last pool or list passed; else `mailbox`, or the name of what it leaves the node by."""
    transport: TransportName = "mailbox"
    via: str = ""
    """Name of the relay, webhook or LMTP store; empty for mailboxes."""

    @property
    def destination(self) -> str:
        """What the queue limits and breaks by: a domain where DNS decides, else what it leaves the node by."""
        if self.transport == "mailbox":
            return ""
        domain = self.address.rpartition("@")[2]
        return domain if self.transport == "relay" and self.via == MX else f"{self.transport}:{self.via}"


@dataclass(slots=True)
class Route:
    """What becomes of one envelope recipient."""

    recipient: str
    landings: list[Landing] = field(default_factory=list)
    refusal: Step | None = None
    priority: int | None = None
    tried: list[Tried] = field(default_factory=list)
    unknown: bool = False
    """Nobody is there: refused with 5.1.1, not by a rule."""


class RoutingTable:
    """The compiled routing part of the settings. Immutable; a reload makes a new one."""

    def __init__(self, settings: Settings) -> None:
        self._rules = settings.routes
        self._domains = frozenset(settings.domains)
        self._default_domain = settings.domains[0]
        self._pools = {name: self._members(group.members) for name, group in settings.pools.items()}
        self._lists = {name: self._members(group.members) for name, group in settings.lists.items()}
        self._postmasters = {
            f"postmaster@{name}": self._address(domain.postmaster, name)
            for name, domain in settings.domain.items()
            if domain.postmaster is not None
        }
        mailboxes = {self._target(rule).target for rule in self._rules if (rule.to or "").startswith("mailbox:")}
        self._named = mailboxes.union(self._postmasters.values(), *self._pools.values(), *self._lists.values())
        outward = [(name, peer.domains) for name, peer in settings.peers.items() if peer.host]
        outward += [(name, smarthost.domains) for name, smarthost in settings.relay.smarthosts.items()]
        self._outward = [(pattern, name) for name, patterns in outward for pattern in patterns]
        self._default_relay = settings.relay.via if settings.relay.enabled else None

    @property
    def domains(self) -> frozenset[str]:
        """Those served here."""
        return self._domains

    def serves(self, address: str) -> bool:
        """Whether the address lies in a served domain."""
        return address.rpartition("@")[2] in self._domains

    def relay(self, address: str) -> Step | None:
        """How mail for an address of a domain not served here leaves the node; None: it does not."""
        domain = address.rpartition("@")[2]
        if not domain or domain in self._domains:
            return None
        named = next((name for pattern, name in self._outward if matches(pattern, domain)), self._default_relay)
        return None if named is None else Step("recipient", "relay", named)

    def may_reach(self, address: str, is_agent: IsAgent) -> bool:
        """What RCPT can know: somebody or something takes the address's mail, or a rule names its `recipient`."""
        return (
            is_agent(address)
            or self._other(address) is not None
            or any(rule.recipient is not None and matches(rule.recipient, address) for rule in self._rules)
        )

    def mentions(self, recipients: Iterable[str]) -> set[str]:
        """Every address that routing these recipients may ask `is_agent` about."""
        found = set(recipients)
        if self._rules or any(self._other(recipient) is not None for recipient in found):
            found |= self._named
        return found

    def route(self, facts: Facts, is_agent: IsAgent) -> Route:
        """Decide for one recipient."""
        route = Route(facts.recipient)
        first: Step | None = None
        for rule in self._rules:
            holds, why = _holds(rule, facts)
            route.tried.append(Tried(rule.name, holds, why))
            if not holds:
                continue
            if rule.priority is not None and route.priority is None:
                route.priority = rule.priority
            if rule.refuse is not None:
                route.refusal = Step(rule.name, "refuse", rule.refuse)
                return route
            if rule.to is not None:
                first = self._target(rule)
                break
        if first is None:
            first = self._own(facts.recipient, is_agent)
        if first is not None:
            self._follow(first, (), facts, is_agent, route.landings, set())
        if not route.landings:
            route.unknown = True
            route.refusal = _nobody(facts.recipient, first)
        return route

    def _target(self, rule: Rule) -> Step:
        kind, _, name = (rule.to or "").partition(":")
        match kind:
            case "pool" | "list" | "relay" | "webhook" | "lmtp":
                return Step(rule.name, kind, name)
            case _:
                return Step(rule.name, "mailbox", self._address(name))

    def _own(self, address: str, is_agent: IsAgent) -> Step | None:
        """The step the recipient itself asks for. An agent comes before a pool or list of the same name."""
        return Step("recipient", "mailbox", address) if is_agent(address) else self._other(address)

    def _other(self, address: str) -> Step | None:
        """What takes mail for an address that is no agent."""
        if address in self._postmasters:
            return Step("recipient", "mailbox", self._postmasters[address])
        return self._group(address) or self.relay(address)

    def _group(self, address: str) -> Step | None:
        name, _, domain = address.partition("@")
        if domain == self._default_domain:
            if name in self._pools:
                return Step("recipient", "pool", name)
            if name in self._lists:
                return Step("recipient", "list", name)
        return None

    def _follow(
        self,
        step: Step,
        behind: tuple[Step, ...],
        facts: Facts,
        is_agent: IsAgent,
        found: list[Landing],
        seen: set[str],
        address: str | None = None,
    ) -> bool:
        """Whether the step leads to a recipient, be it one that was found before. `seen`: addresses and groups."""
        steps = (*behind, step)
        match step.decision:
            case "mailbox":
                return is_agent(step.target) and _land(step.target, steps, found, seen)
            case "relay" | "webhook" | "lmtp":
                return _land(facts.recipient if address is None else address, steps, found, seen)
            case _:
                pass
        name = f"{step.decision}:{step.target}"
        if name in seen or len(steps) > MAX_HOPS:
            return False
        seen.add(name)
        if step.decision == "pool":
            ranked = _ranked(self._pools[step.target], facts.workflow or facts.key)
            return any(self._enter(member, steps, facts, is_agent, found, seen) for member in ranked)
        reached = [self._enter(member, steps, facts, is_agent, found, seen) for member in self._lists[step.target]]
        return any(reached)

    def _enter(
        self,
        member: str,
        steps: tuple[Step, ...],
        facts: Facts,
        is_agent: IsAgent,
        found: list[Landing],
        seen: set[str],
    ) -> bool:
        """One member of a pool or list: an agent ends the chain, another group goes on with it."""
        if is_agent(member):
            return _land(member, steps, found, seen)
        step = self._other(member)
        return step is not None and self._follow(step, steps, facts, is_agent, found, seen, member)

    def _members(self, members: list[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._address(member) for member in members))

    def _address(self, name: str, domain: str | None = None) -> str:
        name = name.lower()
        return name if "@" in name else f"{name}@{domain or self._default_domain}"


def explain(table: RoutingTable, facts: Facts, is_agent: IsAgent) -> tuple[Route, list[str]]:
    """The route and, line by line, every rule tried, whether it held and why, and what came of it."""
    route = table.route(facts, is_agent)
    lines = described(route)
    if facts.workflow is None and any(step.decision == "pool" for way in route.landings for step in way.steps):
        lines.append("  (an example: without X-Workflow-ID each message may meet another member of the pool)")
    if route.priority is not None:
        lines.append(f"  priority {route.priority}")
    return route, lines


def described(route: Route) -> list[str]:
    """Line by line: every rule tried, whether it held and why, and what came of it."""
    lines = [f"recipient {route.recipient}"]
    lines += [
        f"  rule {tried.rule}: {'holds' if tried.holds else 'does not hold'}, {tried.why}" for tried in route.tried
    ]
    if route.refusal is not None:
        lines.append(f"  refused by {route.refusal.rule}: {route.refusal.target}")
    for landing in route.landings:
        path = " → ".join(f"{step.decision} {step.target}" for step in landing.steps)
        last = landing.steps[-1].target
        tail = "" if last == landing.address or landing.transport != "mailbox" else f" → mailbox {landing.address}"
        lines.append(f"  by {landing.steps[0].rule}: {path}{tail}")
    return lines


def _land(address: str, steps: tuple[Step, ...], found: list[Landing], seen: set[str]) -> bool:
    if address not in seen:
        seen.add(address)
        last = steps[-1]
        if last.decision in ("relay", "webhook", "lmtp"):
            found.append(Landing(address, steps, _queue(steps), last.decision, last.target))
        else:
            found.append(Landing(address, steps, _queue(steps)))
    return True


def _holds(rule: Rule, facts: Facts) -> tuple[bool, str]:
    """Whether every condition of the rule holds, and the first that does not (or all that do)."""
    held = []
    for name, pattern, value in (
        ("recipient", rule.recipient, facts.recipient),
        ("sender", rule.sender, facts.sender),
        ("workflow", rule.workflow, facts.workflow or ""),
        ("agent", rule.agent, facts.agent or ""),
        ("content_type", rule.content_type, facts.content_type),
    ):
        if pattern is None:
            continue
        if not matches(pattern, value):
            return False, f"{name} {value!r} is not like {pattern!r}"
        held.append(f"{name} {value!r} is like {pattern!r}")
    for name, pattern in rule.header.items():
        values = facts.header.get_all(name)
        if not any(matches(pattern, value) for value in values):
            return (
                False,
                f"header {name} {values[0]!r} is not like {pattern!r}" if values else f"there is no {name} header",
            )
        held.append(f"header {name} is like {pattern!r}")
    if rule.larger_than is not None:
        if facts.size <= rule.larger_than:
            return False, f"size {facts.size} is not above {rule.larger_than}"
        held.append(f"size {facts.size} is above {rule.larger_than}")
    if rule.smaller_than is not None:
        if facts.size >= rule.smaller_than:
            return False, f"size {facts.size} is not below {rule.smaller_than}"
        held.append(f"size {facts.size} is below {rule.smaller_than}")
    return True, "; ".join(held) or "it has no conditions"


def _ranked(members: tuple[str, ...], key: str) -> list[str]:
    """Members by rendezvous hash: the same key meets the same member as long as it is there, with no state kept."""
    return sorted(members, key=lambda member: hashlib.blake2b(f"{key}\0{member}".encode(), digest_size=8).digest())


def _queue(steps: tuple[Step, ...]) -> str:
    groups = [step.target for step in steps if step.decision in ("pool", "list")]
    if groups:
        return groups[-1]
    return steps[-1].target if steps[-1].decision in ("relay", "webhook", "lmtp") else "mailbox"


def _nobody(recipient: str, first: Step | None) -> Step:
    if first is None:
        text = f"there is no agent, pool or list {recipient}"
    elif first.decision == "mailbox":
        text = f"there is no agent {first.target} to route {recipient} to"
    else:
        text = f"no member of {first.decision} {first.target} can take mail"
    return Step(first.rule if first else "recipient", "refuse", text)
