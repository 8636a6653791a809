"""One message to one server, by SMTP or LMTP, over a connection that may be an older one; and what came of it."""

from dataclasses import replace

from aimx.delivery import egress, trace, verdict
from aimx.delivery.dialogue import Dialogue, Refused, Server, Unreachable
from aimx.delivery.pool import Pool
from aimx.delivery.smtp_client import Envelope, Recipient, Reply
from aimx.delivery.transport import Delivered, Parcel, Result
from aimx.telemetry.span import Span


async def hand_over(pool: Pool, server: Server, parcel: Parcel, talk: Span, *, peer: bool = False) -> Result:
    """A connection that was kept and turns out to be gone costs a second try, not the attempt. `peer`: another AIMX."""
    trace.addressed(talk, server.host, server.port)
    try:
        try:
            return await _transact(pool, server, parcel, talk, peer, fresh=False)
        except _Stale:
            return await _transact(pool, server, parcel, talk, peer, fresh=True)
    except Unreachable as error:
        if error.reason in ("tls", "certificate") and server.encryption == "may" and not server.implicit:
            return await hand_over(pool, replace(server, encryption="none"), parcel, talk, peer=peer)  # RFC 7435 §3
        return verdict.unreachable(error.reason, f"{server.host}: {error.text}", server.host)
    except Refused as error:
        return verdict.of_reply(error.reply.code, error.reply.lines, error.stage, server.host)


async def _transact(pool: Pool, server: Server, parcel: Parcel, talk: Span, peer: bool, *, fresh: bool) -> Result:
    async with pool.lend(server, fresh=fresh) as dialogue:
        if dialogue.tls is not None:
            talk.set("tls.protocol.version", dialogue.tls)
        try:
            leaving = await egress.fit(parcel, dialogue.known, peer=peer)
        except egress.Unfit as error:
            return replace(error.result, host=server.host)
        return _result(await _send(dialogue, _envelope(parcel, leaving), leaving), dialogue, server)


class _Stale(Exception):
    """A kept connection was gone when it was used again."""


async def _send(dialogue: Dialogue, envelope: Envelope, leaving: egress.Leaving) -> Reply:
    used_before = dialogue.sent > 0
    try:
        (reply,) = await dialogue.send(envelope, leaving.octets())
    except Unreachable as error:
        if used_before and not dialogue.data_begun:
            raise _Stale from error
        raise
    return reply


def _envelope(parcel: Parcel, leaving: egress.Leaving) -> Envelope:
    options = parcel.due.target.options
    return Envelope(
        sender=parcel.due.sender,
        recipients=[Recipient(parcel.address, options.get("notify"), options.get("orcpt"))],
        size=leaving.size,
        eight_bit=leaving.eight_bit,
        utf8=leaving.utf8,
        ret=options.get("ret"),
        envid=options.get("envid"),
        priority=parcel.due.target.priority,
    )


def _result(reply: Reply, dialogue: Dialogue, server: Server) -> Result:
    if reply.ok:
        return Delivered(server.host, reply.code, reply.text[:500], tells="DSN" in dialogue.known)
    stage: verdict.Stage = "end" if dialogue.data_begun else "rcpt"
    return verdict.of_reply(reply.code, reply.lines, stage, server.host)
