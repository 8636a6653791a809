"""The webhook transport: a message as JSON, posted to a URL and signed by Standard Webhooks (standardwebhooks.com).

Who configures a URL may be mistaken, and whoever runs its DNS may be hostile: the name is looked up first, an address
in a network that is not allowed is never connected to, and the connection goes to the very address that was looked at.
Redirects are not followed. What the receiver answers is read to `MAX_ANSWER` octets and not kept.

`webhook-id` names the delivery and stays the same over its attempts, so that a receiver can drop what it has already.
"""

import asyncio
import base64
import hmac
import json
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from aimx.config import Settings, Webhook
from aimx.delivery import trace, verdict
from aimx.delivery.dialogue import verified
from aimx.delivery.mx import NoWay, system_addresses
from aimx.delivery.transport import Delivered, Later, Never, Parcel, Result
from aimx.message.part import payload_leaf
from aimx.message.payload import PayloadError, codec_of, decode
from aimx.network import contains, is_outside
from aimx.telemetry.context import Context, carrier, read
from aimx.telemetry.span import CLIENT, Span
from aimx.tlog.tree import leaf_hash

TYPE = "message.received"
MAX_ANSWER = 64 * 1024
MAX_PHRASE = 500
"""Characters of the phrase beside the status that are kept, as of an SMTP reply."""
MAX_WAIT = 86_400.0
"""Seconds of a `Retry-After` that are believed."""
DRAIN_WITHIN = 1.0
"""Seconds for the content of an answer, once its status is there."""
MAX_ADDRESSES = 3
CONNECTIONS = 20
IDLE_FOR = 30.0


class Webhooks:
    """A carrier. One for a node."""

    name = "webhook"

    def __init__(self, settings: Settings) -> None:
        self._webhooks = settings.webhooks
        self._clients: dict[str, httpx.AsyncClient] = {}
        """By webhook: two names behind one address must not share a connection that was verified for one of them."""
        self._verified = cache(verified)

    async def carry(self, parcel: Parcel, span: Span) -> Result:
        """See `Carrier`. The request's span is `webhook NAME`."""
        with span.child(f"webhook {parcel.via}", CLIENT, attributes={"http.request.method": "POST"}) as request:
            webhook = self._webhooks.get(parcel.via)
            if webhook is None:  # not for ever: the settings can be mended, or take a restart
                result: Result = Later("no-way", "4.3.5", f"the node has no webhook called {parcel.via!r}")
            else:
                result = await self._carry(parcel, webhook, request)
            trace.http_said(request, result)
        return result

    async def close(self) -> None:
        await asyncio.gather(*(client.aclose() for client in self._clients.values()))

    async def _carry(self, parcel: Parcel, webhook: Webhook, request: Span) -> Result:
        url = httpx.URL(webhook.url)
        trace.addressed(request, url.host, url.port or (443 if url.scheme == "https" else 80))
        if parcel.due.attempt > 1:
            request.set("http.request.resend_count", parcel.due.attempt - 1)
        if parcel.record.body_size > webhook.max_body:
            text = f"the webhook {parcel.via} takes {webhook.max_body} octets, the message has more"
            return Never("too-large", "5.3.4", text, host=url.host)
        try:
            secrets = keys((await _secret(webhook)).split())
        except (OSError, ValueError):
            return Later("secret", "4.3.5", f"the secret of webhook {parcel.via} cannot be read")
        body = json.dumps(await message(parcel), allow_nan=False, separators=(",", ":")).encode()
        id, now_s = f"msg_{parcel.due.eid}_{parcel.due.id}", int(time.time())
        headers = {
            "Host": url.netloc.decode(),
            "Content-Type": "application/json",
            "User-Agent": "AIMX",
            "webhook-id": id,
            "webhook-timestamp": str(now_s),
            "webhook-signature": sign(secrets, id, now_s, body),
            **carrier(_context(parcel, request)),
        }
        try:
            async with asyncio.timeout(webhook.timeout):
                return await self._post(parcel.via, webhook, url, headers, body)
        except NoWay as error:
            return error.result
        except TimeoutError:
            return verdict.unreachable("timeout", f"{url.host} did not answer within {webhook.timeout:g} s", url.host)

    async def _post(self, name: str, webhook: Webhook, url: httpx.URL, headers: dict[str, str], body: bytes) -> Result:
        """To the first of its addresses that can be connected to. Raises NoWay, TimeoutError."""
        failure: Result | None = None
        for address in await _allowed(url, webhook):
            try:
                return await self._ask(self._client(name, webhook), url, address, headers, body)
            except httpx.ConnectError as error:
                failure = _no_connection(error, url.host)
            except httpx.TimeoutException:
                return verdict.unreachable("timeout", f"{url.host} did not answer in time", url.host)
            except httpx.HTTPError as error:
                return verdict.unreachable("protocol", f"{url.host}: {type(error).__name__}", url.host)
        assert failure is not None, "there is an address"
        return failure

    async def _ask(
        self, client: httpx.AsyncClient, url: httpx.URL, address: str, headers: dict[str, str], body: bytes
    ) -> Result:
        there, named = url.copy_with(host=address), {"sni_hostname": url.raw_host.decode()}
        async with client.stream("POST", there, headers=headers, content=body, extensions=named) as answer:
            await _drain(answer)
        if answer.is_success:
            return Delivered(url.host, answer.status_code, answer.reason_phrase[:MAX_PHRASE])
        return verdict.of_http(answer.status_code, url.host, retry_after(answer.headers.get("Retry-After")))

    def _client(self, name: str, webhook: Webhook) -> httpx.AsyncClient:
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = httpx.AsyncClient(
                verify=self._verified(None if webhook.ca is None else str(webhook.ca)),
                timeout=webhook.timeout,
                trust_env=False,
                follow_redirects=False,
                limits=httpx.Limits(max_connections=CONNECTIONS, keepalive_expiry=IDLE_FOR),
            )
        return client


async def message(parcel: Parcel) -> dict[str, Any]:
    """What is posted. `data.payload` is the payload as JSON (an object, a text), where it can be said so; else
    `data.payload_base64` has its octets."""
    record = parcel.record
    leaf = payload_leaf(parcel.header, b"".join([piece async for piece in parcel.body()]))
    events = await parcel.store.events_of(record.eid)
    logged = next((found.row.leaf for found in events if found.row.ev == "message.accepted"), None)
    return {
        "type": TYPE,
        "timestamp": datetime.fromtimestamp(record.t_ms / 1000, UTC).isoformat().replace("+00:00", "Z"),
        "data": {
            "id": record.eid,
            "message_id": record.message_id,
            "in_reply_to": record.in_reply_to,
            "from": record.sender,
            "to": parcel.address,
            "agent": record.agent,
            "subject": record.subject,
            "workflow": record.workflow,
            "trace_id": record.origin.trace_id.hex(),
            "content_type": leaf.full_type,
            **_payload(leaf.full_type, leaf.data()),
            "audit": None if logged is None else {"leaf": base64.b64encode(leaf_hash(logged)).decode()},
        },
    }


def _context(parcel: Parcel, request: Span) -> Context:
    """That of the request, with the trace's own state; baggage, which agents tell each other, stays inside."""
    stored = read(parcel.header)
    same = isinstance(stored, Context) and stored.trace_id == request.trace_id
    return request.context._replace(tracestate=stored.tracestate if same else "", baggage="")  # type: ignore[union-attr]


async def _drain(answer: httpx.Response) -> None:
    """Read on for the connection's sake. What was decided stands in the status: a content that breaks off or does not
    come makes no delivery undone, which would be one more."""
    size = 0
    with suppress(httpx.HTTPError, TimeoutError):
        async with asyncio.timeout(DRAIN_WITHIN):
            async for piece in answer.aiter_raw():
                size += len(piece)
                if size > MAX_ANSWER:
                    break


def _payload(content_type: str, data: bytes) -> dict[str, Any]:
    if codec_of(content_type) in ("json", "text", "msgpack"):
        try:
            value = decode(content_type, data)
            json.dumps(value, allow_nan=False)
            return {"payload": value}
        except (PayloadError, TypeError, ValueError, RecursionError):
            pass  # it is not what it says, or JSON cannot say it
    return {"payload_base64": base64.b64encode(data).decode()}


def keys(secrets: Sequence[str]) -> list[bytes]:
    """The keys in `whsec_…` secrets. Raises ValueError."""
    if not 1 <= len(secrets) <= 2 or not all(secret.startswith("whsec_") for secret in secrets):
        raise ValueError("one secret, or two while one replaces the other; each is whsec_ and base64")
    found = [base64.b64decode(secret.removeprefix("whsec_"), validate=True) for secret in secrets]
    if not all(24 <= len(key) <= 64 for key in found):
        raise ValueError("a secret has 24 to 64 octets")
    return found


def sign(keys: Sequence[bytes], id: str, now_s: int, body: bytes) -> str:
    """`webhook-signature`: one for each key, so that a receiver may know the old or the new one."""
    signed = f"{id}.{now_s}.".encode() + body
    return " ".join("v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode() for key in keys)


def retry_after(value: str | None) -> float:
    """Seconds (RFC 9110 §10.2.3: a number or a date); 0 where nothing sensible is said."""
    if value is None:
        return 0.0
    if value.strip().isascii() and value.strip().isdigit():
        return min(float(value.strip()[:9]), MAX_WAIT)
    try:
        until = parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return 0.0
    return min(max(0.0, until - time.time()), MAX_WAIT)


async def _secret(webhook: Webhook) -> str:
    """Read at each attempt, so that a secret can be replaced while the node runs. Raises OSError, UnicodeError."""
    if webhook.secret is not None:
        return webhook.secret.get_secret_value()
    assert webhook.secret_file is not None, "the settings have one or the other"
    return await asyncio.to_thread(Path(webhook.secret_file).read_text)


async def _allowed(url: httpx.URL, webhook: Webhook) -> list[str]:
    """Where the request may go. Raises NoWay."""
    known = await system_addresses(url.raw_host.decode())
    found = [address for address in known if is_outside(address, webhook.networks)]
    if url.scheme == "http":
        found = [address for address in found if contains(webhook.networks, address)]
    if not found:
        text = f"{url.host} lies in a network to which this webhook does not go"
        raise NoWay(Never("dns.forbidden", "5.4.4", text, host=url.host))
    return found[:MAX_ADDRESSES]


def _no_connection(error: httpx.ConnectError, host: str) -> Later:
    """A certificate that is not the host's is no matter of the network."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    match cause:
        case ssl.SSLCertVerificationError():
            return verdict.unreachable("certificate", f"the certificate of {host} is not good", host)
        case ssl.SSLError():
            return verdict.unreachable("tls", f"TLS with {host} failed", host)
        case _:
            return verdict.unreachable("connect", f"no connection to {host}", host)
