"""docs/http-api.md says what the application does: every path and every problem stands in it."""

import re
from pathlib import Path

import pytest

from aimx.sidecar import problems
from aimx.sidecar.app import create_app

PAGE = (Path(__file__).parents[2] / "docs" / "http-api.md").read_text()


@pytest.mark.parametrize("name", problems.PROBLEMS)
def test_every_problem_is_in_the_page_with_its_status(name: str) -> None:
    assert f"| `{problems.TYPE}{name}` | {problems.PROBLEMS[name].status} |" in PAGE


def test_the_page_names_no_problem_that_is_not() -> None:
    named = set(re.findall(rf"{problems.TYPE}([a-z-]+)", PAGE))
    assert named == set(problems.PROBLEMS)


def test_every_path_is_in_the_page() -> None:
    # Building the application touches nothing of what the node hands in.
    document = create_app(object()).openapi()  # type: ignore[arg-type]
    for path in document["paths"]:
        assert f"`{path.replace('{path}', '{number}')}" in PAGE or f" {path}`" in PAGE, path


def test_every_operation_describes_its_answers_and_problems() -> None:
    document = create_app(object()).openapi()  # type: ignore[arg-type]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            responses = operation["responses"]
            assert any(status.startswith("2") for status in responses), path
            for status, response in responses.items():
                if not status.startswith("2") and "text/x.tlog.size" not in response["content"]:
                    assert list(response["content"]) == [problems.MEDIA_TYPE], (path, status)
