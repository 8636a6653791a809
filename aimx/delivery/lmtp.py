"""The LMTP transport (RFC 2033): to a mail store, over TCP or a Unix socket. The store answers for each recipient."""

import ssl
from functools import cache

from aimx.config import Lmtp, Settings
from aimx.delivery import egress, trace
from aimx.delivery.dialogue import ENCRYPTION, Server, verified
from aimx.delivery.handover import hand_over
from aimx.delivery.mx import NoWay, system_addresses
from aimx.delivery.pool import Pool
from aimx.delivery.transport import Later, Parcel, Result
from aimx.telemetry.span import CLIENT, Span


class LmtpStores:
    """A carrier. One for a node."""

    name = "lmtp"

    def __init__(self, settings: Settings) -> None:
        self._stores = settings.lmtps
        own = settings.relay.host_name or settings.domains[0]
        self._pool = Pool(own, settings.relay.connections, settings.relay.idle_timeout)
        self._verified = cache(verified)

    async def carry(self, parcel: Parcel, span: Span) -> Result:
        """See `Carrier`. The span of the dialogue is `lmtp NAME`."""
        with span.child(f"lmtp {parcel.via}", CLIENT) as talk:
            result = await self._carry(parcel, talk)
            trace.smtp_said(talk, result)
        return result

    async def close(self) -> None:
        await self._pool.close()

    async def _carry(self, parcel: Parcel, talk: Span) -> Result:
        # Not for ever: the settings can be mended, or take a restart.
        result: Result = Later("no-way", "4.3.5", f"the node has no LMTP store called {parcel.via!r}")
        store = self._stores.get(parcel.via)
        if store is None:
            return result
        egress.strip(parcel.header, trace=True)
        try:
            servers = await self._servers(store)
        except NoWay as error:
            return error.result
        for server in servers:
            result = await hand_over(self._pool, server, parcel, talk)
            if not (isinstance(result, Later) and result.everybody):
                break
        return result

    async def _servers(self, store: Lmtp) -> list[Server]:
        """Raises NoWay."""
        if store.socket is not None:
            return [Server(store.socket.name, str(store.socket), 0, "none", lmtp=True)]
        assert store.host is not None, "the settings have one or the other"
        context = self._context(store)
        return [
            Server(store.host, address, store.port, ENCRYPTION[store.tls], context, lmtp=True)
            for address in await system_addresses(store.host)
        ]

    def _context(self, store: Lmtp) -> ssl.SSLContext | None:
        return self._verified(None if store.ca is None else str(store.ca)) if store.tls == "verify" else None
