"""What the code says on spans stands in the catalogue: every literal attribute and event name in `aimx/`.

`tests/protocol/mail_node.py` holds each span of a running node against its own line there.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import aimx
from aimx.telemetry import catalogue

ROOT = Path(aimx.__file__).parent
ATTRIBUTES = {*catalogue.COMMON, *(name for spec in catalogue.SPANS for name in spec.attributes)}
EVENTS = {name for spec in catalogue.SPANS for name in spec.events}
NAMESPACES = {name.partition(".")[0] for name in ATTRIBUTES}


def said(tree: ast.AST) -> Iterator[tuple[str, int, str]]:
    """(what, line, name) of span attributes and events: keys of dict literals and arguments of `set` and `event`."""
    for node in ast.walk(tree):
        match node:
            case ast.Dict(keys=keys):
                for key in keys:
                    if isinstance(key, ast.Constant) and isinstance(key.value, str) and _is_attribute(key.value):
                        yield "attribute", key.lineno, key.value
            case ast.Call(func=ast.Attribute(attr="set" | "set_attribute"), args=[ast.Constant(value=str(name)), _]):
                yield "attribute", node.lineno, name
            case ast.Call(func=ast.Attribute(attr="event"), args=[ast.Constant(value=str(name)), *_]):
                yield "event", node.lineno, name
            case ast.Call(func=ast.Name(id="SpanEvent"), args=[ast.Constant(value=str(name)), *_]):
                yield "event", node.lineno, name
            case ast.Assign(targets=[ast.Subscript(slice=ast.Constant(value=str(name)))]) if _is_attribute(name):
                yield "attribute", node.lineno, name


def _is_attribute(name: str) -> bool:
    namespace, dot, _ = name.partition(".")
    return bool(dot) and namespace in NAMESPACES and " " not in name


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_name_in_the_code_is_in_the_catalogue(path: Path) -> None:
    known = {"attribute": ATTRIBUTES, "event": EVENTS}
    strange = [
        f"{what} {name!r}, line {line}"
        for what, line, name in said(ast.parse(path.read_text()))
        if name not in known[what]
    ]
    assert strange == [], "catalogue it in aimx/telemetry/catalogue.py, or mend its spelling"


def test_a_wrong_name_would_be_found() -> None:
    wrong = ast.parse('span.set("aimx.dept", 1)\nFacts({"messaging.sytem": "x"})\nspan.event("loop.wraned", {})')
    assert {name for _, _, name in said(wrong)} == {"aimx.dept", "messaging.sytem", "loop.wraned"}
