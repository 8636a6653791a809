"""HTTP requests are spans: for whom, of which operation, in whose trace."""

from pathlib import Path

import httpx

from aimx.telemetry.span import SERVER
from tests.protocol.mail_node import MailNode, running

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def get(node: MailNode, path: str, token: str | None = None) -> int:
    headers = {"traceparent": TRACEPARENT} | ({"Authorization": f"Bearer {token}"} if token else {})
    async with httpx.AsyncClient(verify=node.tls()) as client:
        return (await client.get(node.ready.http + path, headers=headers)).status_code


async def test_who_is_signed_in_goes_on_in_its_own_trace(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada"]) as node:
        admin = Path(node.ready.admin_token_file).read_text().strip()
        assert await get(node, "/v1/messages", admin) == 200
        span = node.spans.one("http listMessages")
        assert span.kind is SERVER
        assert span.attributes == {
            "http.request.method": "GET",
            "http.route": "/v1/messages",
            "http.response.status_code": 200,
            "url.scheme": "https",
        }
        assert span.parent is not None
        assert span.parent.traceparent == TRACEPARENT


async def test_a_strangers_context_is_linked_and_not_continued(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        assert await get(node, "/v1/messages", "wrong") == 401
        span = node.spans.one("http listMessages")
        assert span.parent is None
        assert [context.traceparent[:52] for context, _ in span.links or ()] == [TRACEPARENT[:52]]
        assert span.attributes["http.response.status_code"] == 401
        assert span.error_type is None, "the stranger's fault, not ours"


async def test_polls_and_what_is_not_there_leave_no_span(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        admin = Path(node.ready.admin_token_file).read_text().strip()
        for path in ("/healthz", "/readyz", "/metrics", "/nothing/here"):
            await get(node, path, admin)
        assert [span.name for span in node.spans if span.name.startswith("http ")] == []
