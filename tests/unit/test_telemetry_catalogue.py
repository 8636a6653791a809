"""The catalogues are what the documentation says, and hold what the conventions demand."""

import re
from pathlib import Path

import pytest

from aimx.telemetry import catalogue
from aimx.telemetry.exposition import prometheus_name, render
from aimx.telemetry.metrics import Metrics
from aimx.telemetry.span import Kind

DOCS = Path(__file__).parents[2] / "docs" / "spans.md"


def test_the_documentation_is_the_catalogue() -> None:
    assert DOCS.read_text().partition("\n---\n")[2].strip() == catalogue.tables().strip(), (
        "put the output of `python -m aimx.telemetry.catalogue` below the line of docs/spans.md"
    )


@pytest.mark.parametrize(
    ("name", "template", "kind"),
    [
        ("smtp receive", "smtp receive", Kind.SERVER),
        ("route default", "route {rule}", Kind.INTERNAL),
        ("enqueue mailbox", "enqueue {queue}", Kind.PRODUCER),
        ("deliver mailbox", "deliver {transport}", Kind.CONSUMER),
        ("relay mx", "relay {peer}", Kind.CLIENT),
        ("imap fetch", "imap fetch", Kind.SERVER),
        ("send", "send", Kind.PRODUCER),
        ("process", "process", Kind.CONSUMER),
    ],
)
def test_a_name_belongs_to_its_template(name: str, template: str, kind: Kind) -> None:
    spec = catalogue.span_spec(name)
    assert spec is not None
    assert (spec.name, spec.kind) == (template, kind)


@pytest.mark.parametrize(
    "name", ["", "smtp", "route", "deliver to somebody", "imap fetch 12", "SMTP receive", "send ada"]
)
def test_other_names_are_not_ours(name: str) -> None:
    assert catalogue.span_spec(name) is None


def test_every_name_and_attribute_is_well_formed_and_none_says_model_call() -> None:
    assert len({spec.name for spec in catalogue.SPANS}) == len(catalogue.SPANS)
    for spec in catalogue.SPANS:
        for attribute in (*spec.attributes, *catalogue.COMMON):
            assert re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)+", attribute), attribute
        assert "gen_ai.operation.name" not in spec.attributes  # backends would file the span as a call of a model


def test_every_metric_has_a_name_that_prometheus_takes_and_its_buckets_rise() -> None:
    names = [prometheus_name(spec) for spec in catalogue.METRICS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"(aimx|db_client|http_server)_[a-z_]+", name) for name in names)
    for spec in catalogue.METRICS:
        assert (spec.kind == "histogram") == bool(spec.buckets)
        assert list(spec.buckets) == sorted(set(spec.buckets))
        assert not {"agent", "address", "trace", "workflow", "id"} & set(spec.labels), "labels are of low cardinality"
    assert render(Metrics().snapshot()).endswith("\n")
