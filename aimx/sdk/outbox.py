"""Handing mail over: one kept SMTP connection, everything or nothing, every refusal a typed error."""

import asyncio
import contextlib
import re
from collections.abc import Sequence

import aiosmtplib
from aiosmtplib import SMTPException, SMTPResponseException, SMTPServerDisconnected

from aimx.sdk.account import Account
from aimx.sdk.errors import LoopRefused, Refused, SignInFailed, Unconfirmed, Unreachable, reason

TIMEOUT = 120.0
_ENHANCED = re.compile(r"([245]\.\d{1,3}\.\d{1,3})[ \t]+", re.MULTILINE)


class Outbox:
    def __init__(self, account: Account) -> None:
        self._account = account
        self._smtp: aiosmtplib.SMTP | None = None
        self._turn = asyncio.Lock()

    async def send(
        self, recipients: Sequence[str], octets: bytes, *, message_id: str, trace_id: str, priority: int | None
    ) -> str:
        """Run one transaction; the text of the 250. Any recipient refused means nothing is sent.

        Raises Refused, LoopRefused, SignInFailed, Unreachable (nothing was handed over), Unconfirmed.
        """
        async with self._turn:
            smtp = await self._ready()
            try:
                try:
                    await self._mail(smtp, recipients, octets, priority)
                except SMTPServerDisconnected:
                    # A kept connection that the node has dropped since (idle, restarted): nothing was said yet.
                    smtp = await self._ready(fresh=True)
                    await self._mail(smtp, recipients, octets, priority)
                await self._recipients(smtp, recipients, trace_id)
            except SMTPResponseException as error:
                raise await self._refused(smtp, error, None, trace_id) from None
            except (SMTPException, OSError) as error:
                self._drop()
                raise Unreachable(f"the SMTP connection broke: {error}") from None
            except asyncio.CancelledError:
                self._drop()  # an answer is still under way: this connection cannot go on
                raise
            try:
                return (await smtp.data(octets, timeout=TIMEOUT)).message
            except SMTPResponseException as error:
                raise await self._refused(smtp, error, None, trace_id) from None
            except (SMTPException, OSError):
                self._drop()
                raise Unconfirmed(message_id) from None
            except asyncio.CancelledError:
                self._drop()  # half a message was written: this connection cannot go on
                raise

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
        kind = LoopRefused if (error.code, enhanced) == (554, "5.4.6") else Refused
        return kind(error.code, enhanced, text, recipient=recipient, trace_id=trace_id)

    def _drop(self) -> None:
        smtp, self._smtp = self._smtp, None
        if smtp is not None:
            smtp.close()
