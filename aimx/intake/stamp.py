"""The headers that only AIMX writes: stripped at every door, then stamped (architecture: names, domains, doors).

Strip-then-stamp is what makes them worth believing: whatever a reader finds under these names, AIMX wrote.
"""

from collections.abc import Sequence

from aimx.message import stamp
from aimx.message.header import Field, HeaderBlock, bare, decode_text
from aimx.telemetry.context import Context, Door, Hop, claimed, hop_line, is_context_header, write

_OURS = frozenset({b"return-path", b"delivered-to", b"x-agent-id"})


def agent_id(address: str, domains: Sequence[str]) -> str:
    """What `X-Agent-ID` calls an agent: its name in the default domain, its address in any other."""
    local, _, domain = address.partition("@")
    return local if domain == domains[0] else address


def claims_another(header: HeaderBlock, address: str, domains: Sequence[str]) -> bool:
    """Whether an `X-Agent-ID` names somebody else than the authenticated account."""
    own = {address, agent_id(address, domains)}
    return any(value.strip().lower() not in own for value in header.get_all("X-Agent-ID"))


def strip(header: HeaderBlock, domains: Sequence[str], door: Door, *, context: bool) -> list[bytes]:
    """Take out what only AIMX may write; `context` also takes out trace headers that cannot be continued.

    A peer's `AIMX-Trace` stays: an AIMX wrote it. What a stranger says of trace and workflow comes back as lines to be
    stamped, under names that no agent's library takes up and carries into the trust zone.
    """
    stranger = door is Door.STRANGER
    header.strip(lambda name: _is_ours(name) and not (name == b"aimx-trace" and door is Door.PEER))
    taken = header.strip(lambda name: context and is_context_header(name))
    if stranger:
        taken += header.strip(lambda name: name == b"x-workflow-id")
    if "Authentication-Results" in header:
        # RFC 8601 §5: results that claim to be ours and are not must go, others' may stay.
        kept = [field for field in header.fields if not _is_our_verdict(field, domains)]
        header.replace(kept)
    return claimed(taken) if stranger else []


def _is_ours(name: bytes) -> bool:
    return name.startswith(b"aimx-") or name in _OURS


def stamp_accepted(
    header: HeaderBlock,
    *,
    eid: str,
    sender: str,
    agent: str | None,
    workflow: str | None,
    received: bytes,
    hops: Sequence[Hop],
    claims: Sequence[bytes],
    context: Context | None,
    message_id: str | None,
    date_ms: int | None,
) -> bytes:
    """The header block as stored. `hops`: of this node, oldest first. `agent`: None where nobody proved to be one.

    `workflow`, `context`, `message_id`, `date_ms` are stamped when given: the message had none that may stand.
    """
    lines = [f"Return-Path: <{sender}>\r\n".encode(), f"AIMX-ID: {eid}\r\n".encode()]
    lines += [hop_line(hop) for hop in reversed(hops)]
    lines.append(received)
    if agent is not None:
        lines.append(stamp.line("X-Agent-ID", agent))
    if workflow is not None:
        lines.append(stamp.line("X-Workflow-ID", workflow))
    lines += claims
    if context is not None:
        lines += write(context)
    if message_id is not None:
        header.strip(lambda name: name == b"message-id")  # an empty one
        lines.append(f"Message-ID: {message_id}\r\n".encode())
    if date_ms is not None:
        lines.append(stamp.line("Date", stamp.date(date_ms)))
    header.prepend(lines)
    return header.to_bytes()


def stamp_appended(header: HeaderBlock, eid: str) -> bytes:
    """An appended message stays what its owner made it, but for our own names."""
    header.strip(lambda name: name.startswith(b"aimx-"))
    header.prepend([f"AIMX-ID: {eid}\r\n".encode()])
    return header.to_bytes()


def _is_our_verdict(field: Field, domains: Sequence[str]) -> bool:
    return field.name == b"authentication-results" and _authserv_id(decode_text(field.value)) in domains


def _authserv_id(value: str) -> str:
    """Who speaks in an Authentication-Results field (RFC 8601 §2.2): its first word."""
    words = bare(value).partition(";")[0].split()
    return words[0].lower().rstrip(".") if words else ""
