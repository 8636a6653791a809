-- Rows on their way into a table: a statement takes an array of them, so that a whole group goes in by one trip.
-- Types of their own, for a table may get columns of which a process that runs already knows nothing.

CREATE TYPE message_row AS (
    id bigint, eid text, t_ms bigint, sender text, agent text, recipients text, delivered_to text, message_id text,
    in_reply_to text, subject text, content_type text, workflow text, priority integer, origin_trace bytea,
    origin_span bytea, trace_flags integer, tracestate text, baggage text, context_source text, received_trace bytea,
    received_span bytea, depth integer, loop_key text, header_size bigint, body_size bigint, once_key text
);
CREATE TYPE content_row AS (message bigint, header bytea, data bytea, body bigint);
CREATE TYPE party_row AS (address text, message bigint, role smallint, trace bytea);
CREATE TYPE chain_row AS (
    loop_key text, message bigint, writer integer, n bigint, first_ms bigint, t_ms bigint, sender text, recipients text,
    payload bytea, template bytea, depth integer
);
CREATE TYPE entry_row AS (
    owner bigint, mailbox bigint, uid bigint, message bigint, flags bigint, modseq bigint, internal_ms bigint,
    saved_ms bigint, size bigint
);
-- What came into a mailbox: the new uidnext and modseq, and by how much the counts grow.
CREATE TYPE growth_row AS (
    owner bigint, id bigint, uidnext bigint, modseq bigint, arrived bigint, unseen bigint, deleted bigint,
    unacked bigint, octets bigint
);
CREATE TYPE delivery_row AS (
    id bigint, message bigint, address text, original text, trace bytea, span bytea, queue text, transport text,
    destination text, options text, priority integer, folder text, flags text, internal_ms bigint, attempt integer,
    created_ms bigint, last_ms bigint, next_ms bigint, deadline_ms bigint, reason text, previous_trace bytea,
    previous_span bytea
);
CREATE TYPE event_row AS (
    eid text, ev text, t_ms bigint, trace_id bytea, span_id bytea, leaf bytea, ref text, agent text, key bytea,
    detail text
);
CREATE TYPE link_row AS (message_eid text, event text, n integer);
