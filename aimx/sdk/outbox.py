"""Handing mail over: one kept SMTP connection, everything or nothing, every refusal a typed error."""

import asyncio
import contextlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import aiosmtplib
from aiosmtplib import SMTPException, SMTPResponseException, SMTPServerDisconnected

from aimx.sdk.account import Account
from aimx.sdk.errors import KeyReused, LoopRefused, Refused, SignInFailed, Unconfirmed, Unreachable, reason

TIMEOUT = 120.0
BACK_WITHIN = 5.0
"""Seconds that a node whose connection was cut after the data has to come back, until the message is Unconfirmed."""
_ENHANCED = re.compile(r"([245]\.\d{1,3}\.\d{1,3})[ \t]+", re.MULTILINE)


class Handing(NamedTuple):
    """One message to be handed over."""

    recipients: Sequence[str]
    octets: bytes
    message_id: str
    key: str
    """The idempotency key in its header."""
    trace_id: str
    priority: int | None


class _Cut(Exception):
    """The connection was lost between the end of the data and its answer."""


class Outbox:
    def __init__(self, account: Account) -> None:
        self._account = account
        self._smtp: aiosmtplib.SMTP | None = None
        self._turn = asyncio.Lock()

    async def send(self, handing: Handing) -> str:
        """Run one transaction; the text of the 250. Any recipient refused means nothing is sent.

        Cut off after the data, it is run once more: its idempotency key keeps the node from accepting it twice.
        Raises Refused, LoopRefused, KeyReused, SignInFailed, Unreachable (nothing was handed over), Unconfirmed.
        """
        async with self._turn:
            try:
                return await self._transact(await self._ready(), handing)
            except _Cut:
                pass
            try:
                return await self._transact(await self._returned(), handing, again=True)
            except (_Cut, Unreachable, SignInFailed):
                raise Unconfirmed(handing.message_id, handing.key) from None

    async def _transact(self, smtp: aiosmtplib.SMTP, handing: Handing, *, again: bool = False) -> str:
        """Raises _Cut when the connection was lost with all of the message said; `again`: also when it is put off."""
        recipients, octets, trace_id = handing.recipients, handing.octets, handing.trace_id
        try:
            try:
                await self._mail(smtp, recipients, octets, handing.priority)
            except SMTPServerDisconnected:
                # A kept connection that the node has dropped since (idle, restarted): nothing was said yet.
                smtp = await self._ready(fresh=True)
                await self._mail(smtp, recipients, octets, handing.priority)
            await self._recipients(smtp, recipients, trace_id)
        except SMTPResponseException as error:
            if again:
                raise _Cut from None
            raise await self._refused(smtp, error, None, trace_id) from None
        except Refused:
            if again:
                raise _Cut from None  # a recipient may have gone since; of the first try this says nothing
            raise
        except (SMTPException, OSError) as error:
            self._drop()
            raise Unreachable(f"the SMTP connection broke: {error}") from None
        except asyncio.CancelledError:
            self._drop()  # an answer is still under way: this connection cannot go on
            raise
        try:
            return (await smtp.data(octets, timeout=TIMEOUT)).message
        except SMTPResponseException as error:
            refused = await self._refused(smtp, error, None, trace_id)
            if again and refused.temporary:
                raise _Cut from None
            raise refused from None
        except (SMTPException, OSError):
            self._drop()
            raise _Cut from None
        except asyncio.CancelledError:
            self._drop()  # half a message was written: this connection cannot go on
            raise

    async def _returned(self) -> aiosmtplib.SMTP:
        """A new connection as soon as there is one: a node that was killed is mostly back within seconds."""
        pause, left = 0.05, BACK_WITHIN
        while True:
            try:
                return await self._ready(fresh=True)
            except Unreachable:
                if left <= 0:
                    raise
            await asyncio.sleep(pause)
            left -= pause
            pause = min(2 * pause, 0.8)

    async def close(self) -> None:
        smtp, self._smtp = self._smtp, None
        if smtp is not None:
            with contextlib.suppress(Exception):
                await smtp.quit(timeout=1)
            smtp.close()

    async def _ready(self, *, fresh: bool = False) -> aiosmtplib.SMTP:
        if self._smtp is not None and self._smtp.is_connected and not fresh:
            return self._smtp
        self._drop()
        host, port = self._account.smtp
        smtp = aiosmtplib.SMTP(
            hostname=host,
            port=port,
            use_tls=True,
            tls_context=self._account.tls(),
            local_hostname="localhost",  # asking the system for a name may ask DNS, which may take seconds
            timeout=TIMEOUT,
        )
        try:
            await smtp.connect(timeout=30)
            await smtp.ehlo()
        except (SMTPException, OSError) as error:
            smtp.close()
            raise Unreachable(f"no SMTP at {host}:{port}: {reason(error, self._account.ca)}") from None
        try:
            await smtp.auth_plain(self._account.address, self._account.password)
        except SMTPResponseException as error:
            smtp.close()
            if error.code in (421, 454):
                raise Unreachable(f"{error.code} {error.message}") from None
            raise SignInFailed(f"{self._account.address} may not sign in: {error.code} {error.message}") from None
        except (SMTPException, OSError) as error:
            smtp.close()
            raise Unreachable(f"no SMTP at {host}:{port}: {reason(error)}") from None
        self._smtp = smtp
        return smtp

    async def _mail(
        self, smtp: aiosmtplib.SMTP, recipients: Sequence[str], octets: bytes, priority: int | None
    ) -> None:
        options = [f"SIZE={len(octets)}"] if smtp.supports_extension("size") else []
        if smtp.supports_extension("8bitmime"):
            options.append("BODY=8BITMIME")
        if priority is not None and smtp.supports_extension("mt-priority"):
            options.append(f"MT-PRIORITY={priority}")  # RFC 6710 §4.1
        wide = not all(address.isascii() for address in (self._account.address, *recipients))
        if wide:
            options.append("SMTPUTF8")
        try:
            await smtp.mail(self._account.address, options=options, encoding="utf-8" if wide else "ascii")
        except SMTPResponseException as error:
            if error.code == 421:  # it leaves; another connection may find it back
                raise SMTPServerDisconnected(error.message) from None
            raise

    async def _recipients(self, smtp: aiosmtplib.SMTP, recipients: Sequence[str], trace_id: str) -> None:
        for address in recipients:
            try:
                await smtp.rcpt(address, encoding="ascii" if address.isascii() else "utf-8")
            except SMTPResponseException as error:
                raise await self._refused(smtp, error, address, trace_id) from None

    async def _refused(
        self, smtp: aiosmtplib.SMTP, error: SMTPResponseException, recipient: str | None, trace_id: str
    ) -> Refused:
        if error.code == 421:
            self._drop()
        else:
            with contextlib.suppress(SMTPException, OSError):
                await smtp.rset()
        found = _ENHANCED.match(error.message)
        text = _ENHANCED.sub("", error.message).replace("\n", " ").strip()
        enhanced = found.group(1) if found else ""
        kind = Refused
        if (error.code, enhanced) == (554, "5.4.6"):
            kind = LoopRefused
        elif (error.code, enhanced) == (554, "5.7.1") and text.startswith("Idempotency-Key"):
            kind = KeyReused
        return kind(error.code, enhanced, text, recipient=recipient, trace_id=trace_id)

    def _drop(self) -> None:
        smtp, self._smtp = self._smtp, None
        if smtp is not None:
            smtp.close()
