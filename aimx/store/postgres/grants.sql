-- Who may do what in schema `aimx`. Run as its owner after every migration; again is harmless.
--
-- aimx_app   serves mail: it writes events and cannot change, delete or mark them as logged.
-- aimx_seq   writes the log: it reads events, records its own, and moves them from the outbox to `sequenced`.
-- aimx_api   the HTTP door: it reads all but credentials, records events, and may erase messages and set legal holds.

GRANT USAGE ON SCHEMA aimx TO aimx_app, aimx_seq, aimx_api;
REVOKE ALL ON ALL TABLES IN SCHEMA aimx FROM aimx_app, aimx_seq, aimx_api;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA aimx FROM aimx_app, aimx_seq, aimx_api;

-- Every process looks at what it has missed and has a number to write under.
GRANT SELECT ON schema_version, counter, mailbox, writer TO aimx_app, aimx_seq, aimx_api;
GRANT INSERT ON writer TO aimx_app, aimx_seq, aimx_api;
GRANT SELECT ON SEQUENCE delivery_id TO aimx_app, aimx_seq, aimx_api;
GRANT USAGE, SELECT ON SEQUENCE event_seq TO aimx_app, aimx_seq, aimx_api;
GRANT SELECT, INSERT ON event, event_message TO aimx_app, aimx_seq, aimx_api;
GRANT SELECT, INSERT ON outbox TO aimx_app, aimx_seq, aimx_api;
GRANT SELECT ON sequenced, delivery TO aimx_app, aimx_seq, aimx_api;

GRANT USAGE ON ALL SEQUENCES IN SCHEMA aimx TO aimx_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON agent, token, body, part, party, mailbox, entry, vanished, keyword, subscription,
    delivery, once, node, payload_schema TO aimx_app;
GRANT UPDATE ON counter TO aimx_app;
GRANT SELECT, INSERT ON message, content, chain TO aimx_app;
GRANT SELECT, INSERT, DELETE ON hold TO aimx_app;

GRANT DELETE ON outbox TO aimx_seq;
GRANT INSERT ON sequenced TO aimx_seq;

GRANT SELECT (id, address, created_ms, disabled, max_unacked, quota, may_prioritise) ON agent TO aimx_api;
GRANT SELECT ON token, message, content, body, part, party, chain, entry, vanished, keyword, subscription, once, hold,
    node, payload_schema TO aimx_api;

-- Erasure and legal hold.
GRANT UPDATE (sender, agent, recipients, delivered_to, message_id, in_reply_to, subject, content_type, workflow,
    tracestate, baggage, loop_key, once_key, erased) ON message TO aimx_app, aimx_api;
GRANT UPDATE (header, data, body) ON content TO aimx_app, aimx_api;
GRANT UPDATE (sender, recipients, payload, template) ON chain TO aimx_app, aimx_api;
GRANT UPDATE (key, detail) ON event TO aimx_app, aimx_api;
GRANT UPDATE (digest) ON once TO aimx_api;
GRANT UPDATE (uidnext, modseq, messages, recent, unseen, deleted, unacked, octets) ON mailbox TO aimx_api;
GRANT UPDATE (used), DELETE ON body TO aimx_api;
GRANT DELETE ON part, party, entry, delivery TO aimx_api;
GRANT INSERT ON vanished TO aimx_api;
GRANT INSERT, DELETE ON hold TO aimx_api;
