"""The Python client: send, inbox, ack, request, with trace context joined by itself.

Owns the agent's side of a conversation: where a node is (`account`), handing mail over (`outbox`), taking it (`imap`,
`link`, `inbox`), its spans (`trace`). Speaks SMTP and IMAP like any other client; imports nothing of the server but
message, telemetry and tlog.
"""
