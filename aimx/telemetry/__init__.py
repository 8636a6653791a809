"""Trace context in mail headers, the span and metric catalogues, cheap recording and export.

Knows OpenTelemetry and mail headers. Knows nothing of stores, routing or protocols.
"""
