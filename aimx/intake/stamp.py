"""The headers that only AIMX writes: stripped at every door, then stamped (architecture: names, domains, doors).

Strip-then-stamp is what makes them worth believing: whatever a reader finds under these names, AIMX wrote.
"""

from collections.abc import Sequence

from aimx.message import stamp
from aimx.message.header import HeaderBlock
from aimx.telemetry.context import Context, Hop, hop_line, is_context_header, write

_OURS = frozenset({b"return-path", b"delivered-to"})


def agent_id(address: str, domains: Sequence[str]) -> str:
    """What `X-Agent-ID` calls an agent: its name in the default domain, its address in any other."""
    local, _, domain = address.partition("@")
    return local if domain == domains[0] else address


def claims_another(header: HeaderBlock, address: str, domains: Sequence[str]) -> bool:
    """Whether an `X-Agent-ID` names somebody else than the authenticated account."""
    own = {address, agent_id(address, domains)}
    return any(value.strip().lower() not in own for value in header.get_all("X-Agent-ID"))


def strip(header: HeaderBlock, domains: Sequence[str], *, context: bool) -> None:
    """Take out what only AIMX may write; `context` also takes out trace headers that cannot be continued."""
    verdicts = [line for line in header.raw_fields("Authentication-Results") if _speaks_for(line, domains)]
    header.strip(lambda name: name.startswith(b"aimx-") or name in _OURS or (context and is_context_header(name)))
    if verdicts:
        # RFC 8601 §5: results that claim to be ours and are not must go, others' may stay.
        header.fields = [field for field in header.fields if field.raw not in verdicts]
        header.strip(lambda name: False)


def stamp_accepted(
    header: HeaderBlock,
    *,
    eid: str,
    sender: str,
    agent: str,
    received: bytes,
    hops: Sequence[Hop],
    context: Context | None,
    message_id: str | None,
    date_ms: int | None,
) -> bytes:
    """The header block as stored. `context`, `message_id`, `date_ms` are stamped when given: the message had none."""
    lines = [f"Return-Path: <{sender}>\r\n".encode(), f"AIMX-ID: {eid}\r\n".encode()]
    lines += [hop_line(hop) for hop in reversed(hops)]
    lines.append(received)
    if "X-Agent-ID" not in header and agent:
        lines.append(stamp.line("X-Agent-ID", agent))
    if context is not None:
        lines += write(context)
    if message_id is not None:
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


def _speaks_for(line: bytes, domains: Sequence[str]) -> bool:
    value = line.partition(b":")[2].decode("ascii", "replace").split(";")[0].split()
    return bool(value) and value[0].strip().lower() in domains
