"""The verifier page: whoever looks at a proof checks it in the browser, so that the server need not be believed.

One file without anything from elsewhere (`verify.html`), so that a saved copy works offline. Its policy lets it run its
own script and send nothing.
"""

import base64
import re
from functools import cache
from hashlib import sha256
from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response

from aimx.sidecar.describe import content, problems

router = APIRouter(tags=["audit"])


@cache
def page() -> str:
    return files(__package__).joinpath("verify.html").read_text(encoding="utf-8")


@cache
def policy() -> str:
    """The Content-Security-Policy: this style and this script by their hashes, nothing else."""
    allowed = [f"{name}-src '{_hash(name)}'" for name in ("script", "style")]
    return "; ".join(
        ("default-src 'none'", *allowed, "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'")
    )


def _hash(kind: str) -> str:
    inside = re.search(rf"<{kind}>(.*?)</{kind}>", page(), re.DOTALL)
    assert inside is not None
    return "sha256-" + base64.b64encode(sha256(inside[1].encode()).digest()).decode()


@router.get(
    "/verify",
    summary="A page that checks a proof in the browser",
    operation_id="getVerifier",
    response_class=HTMLResponse,
    responses={200: content("text/html", "One file; a saved copy works offline."), **problems()},
)
async def verifier() -> Response:
    return HTMLResponse(page(), headers={"Content-Security-Policy": policy(), "Cache-Control": "no-cache"})
