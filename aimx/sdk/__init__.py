"""The Python client: send, inbox, ack, request, with trace context joined by itself.

Speaks SMTP and IMAP like any other client; imports nothing of the server but message, telemetry and tlog.
"""
