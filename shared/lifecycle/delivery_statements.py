"""
The SQL of `deliveries.py`, in the order in which a sender uses it. Texts are for psycopg's own cursor: what returns a row for every
delivery costs a third of what it does through SQLAlchemy's.
"""

from __future__ import annotations

from sqlalchemy import text

# Hop from queue to queue along the index, and take the first few of each: a million that wait for a dead host cost no more than four.
# statement_timestamp, not clock_timestamp: an index can be searched for it.
CHOOSE = """
WITH RECURSIVE queue AS (
    (SELECT lane, kind FROM webhook_delivery WHERE state = 'pending' ORDER BY lane, kind LIMIT 1)
    UNION ALL
    SELECT following.lane, following.kind FROM queue CROSS JOIN LATERAL (
        SELECT lane, kind FROM webhook_delivery AS waiting
        WHERE state = 'pending' AND (waiting.lane, waiting.kind) > (queue.lane, queue.kind)
        ORDER BY waiting.lane, waiting.kind LIMIT 1
    ) AS following
),
room AS (SELECT * FROM unnest(CAST(%(queues)s AS text[]), CAST(%(queue_rooms)s AS integer[])) AS given (queue, size)),
tenant_room AS (SELECT * FROM unnest(CAST(%(tenants)s AS text[]), CAST(%(tenant_rooms)s AS integer[])) AS given (tenant_id, size)),
first AS (
    SELECT head.id, head.tenant_id, head.next_at, endpoint.breaker_until IS NOT NULL AND queue.kind <> 'test' AS is_probe,
           row_number() OVER (PARTITION BY queue.lane, queue.kind = 'test' ORDER BY queue.kind, head.next_at, head.id) AS of_lane
    FROM queue
    LEFT JOIN webhook_endpoint AS endpoint ON endpoint.id = queue.lane
    LEFT JOIN room ON room.queue = queue.lane || ' ' || queue.kind
    CROSS JOIN LATERAL (
        SELECT id, tenant_id, next_at FROM webhook_delivery AS due
        WHERE due.lane = queue.lane AND due.kind = queue.kind AND state = 'pending' AND next_at <= statement_timestamp()
            AND (lease_until IS NULL OR lease_until < statement_timestamp())
        ORDER BY next_at, id
        LIMIT coalesce(room.size, CASE queue.kind WHEN 'live' THEN %(queue_room)s ELSE 1 END)
    ) AS head
    WHERE (endpoint.id IS NULL OR endpoint.status = 'enabled')
        AND (queue.kind = 'test' OR endpoint.breaker_until IS NULL OR endpoint.breaker_until <= statement_timestamp())
),
chosen AS (
    SELECT ranked.id, ranked.is_probe FROM (
        SELECT first.*, row_number() OVER (PARTITION BY tenant_id ORDER BY next_at, id) AS of_tenant
        FROM first WHERE NOT is_probe OR of_lane = 1
    ) AS ranked
    LEFT JOIN tenant_room USING (tenant_id)
    WHERE of_tenant <= coalesce(tenant_room.size, %(tenant_room)s)
    ORDER BY next_at LIMIT %(total)s
)
SELECT delivery.id, delivery.tenant_id, delivery.lane, delivery.kind, delivery.attempt, delivery.tries, delivery.endpoint_id, is_probe,
       coalesce(endpoint.url, delivery.url) AS url, delivery.body, delivery.lease_until IS NOT NULL AS was_held,
       coalesce(endpoint.secret, signer.secret, tenant.webhook_secret) AS secret,
       CASE WHEN endpoint.id IS NOT NULL THEN
                CASE WHEN endpoint.previous_secret_until > statement_timestamp() THEN endpoint.previous_secret END
            WHEN signer.id IS NOT NULL THEN
                CASE WHEN signer.previous_secret_until > statement_timestamp() THEN signer.previous_secret END
            WHEN tenant.previous_webhook_secret_until > statement_timestamp() THEN tenant.previous_webhook_secret END AS previous_secret,
       coalesce(endpoint.is_thin, false) AS is_thin,
       event.id AS event_id, event.type AS event_type, event.seq AS event_seq, event.data AS event_data,
       event.created_at AS event_created_at, CASE WHEN delivery.endpoint_id IS NULL THEN job.dialect END AS dialect, job.trace,
       statement_timestamp() AS now
FROM chosen
-- Each by its id: OFFSET 0 keeps Postgres from reading a table through that it takes for a small one.
CROSS JOIN LATERAL (SELECT * FROM webhook_delivery WHERE webhook_delivery.id = chosen.id OFFSET 0) AS delivery
JOIN tenant ON tenant.id = delivery.tenant_id
JOIN event ON event.id = delivery.event_id
LEFT JOIN job ON job.id = event.job_id
LEFT JOIN webhook_endpoint AS endpoint ON endpoint.id = delivery.endpoint_id
-- Whose secret signs for a job's own URL, if the job names one; a deleted endpoint has none any more.
LEFT JOIN webhook_endpoint AS signer ON delivery.endpoint_id IS NULL AND signer.id = job.webhook->>'secret_id'
    AND signer.tenant_id = delivery.tenant_id AND signer.secret <> ''
ORDER BY delivery.next_at, delivery.id
"""

# Whoever comes first sends the probe; as long as its answer may take, nobody else does.
PROBE = """
UPDATE webhook_endpoint SET breaker_until = statement_timestamp() + CAST(%(lease)s AS interval)
WHERE id = ANY(CAST(%(ids)s AS text[])) AND breaker_until <= statement_timestamp()
RETURNING id
"""

# What was chosen, if it is as it was: of senders that chose the same at one moment, one gets it. One that another was given and gave back
# has a body by now. Rows are given as one JSON text: psycopg spells arrays in Python, byte by byte.
HOLD = """
WITH chosen AS (
    SELECT * FROM json_to_recordset(CAST(%(chosen)s AS json)) AS given (id text, attempt bigint, body text, lost_url text)
),
free AS (
    SELECT delivery.id FROM webhook_delivery AS delivery JOIN chosen USING (id)
    WHERE delivery.attempt = chosen.attempt AND delivery.state = 'pending'
        AND (delivery.lease_until IS NULL OR delivery.lease_until < statement_timestamp())
        AND (delivery.body IS NULL OR chosen.body IS NULL)
    FOR UPDATE OF delivery SKIP LOCKED
),
held AS (
    UPDATE webhook_delivery AS delivery
    SET attempt = delivery.attempt + 1, tries = tries + 1, lease_until = clock_timestamp() + CAST(%(lease)s AS interval),
        body = coalesce(delivery.body, convert_to(chosen.body, 'UTF8'))
    FROM chosen JOIN free USING (id)
    WHERE delivery.id = chosen.id
    RETURNING delivery.id
),
lost AS (
    INSERT INTO webhook_attempt (delivery_id, attempt, url, headers, error)
    SELECT id, attempt, lost_url, '{}', 'the sender ended before it could write down an answer' FROM chosen JOIN held USING (id)
    WHERE lost_url IS NOT NULL
    ON CONFLICT DO NOTHING
)
SELECT id FROM held
"""

# All that an attempt which succeeds has to leave, in one statement. An endpoint's row is written only if it had failed before.
FINISH = """
WITH result AS (
    SELECT * FROM json_to_recordset(CAST(%(results)s AS json)) AS given (
        id text, attempt bigint, state text, retry_in_s double precision, url text, headers jsonb, status bigint, error text, reply text,
        latency_ms bigint
    )
),
written AS (
    UPDATE webhook_delivery AS delivery
    SET state = result.state, lease_until = NULL, next_at = clock_timestamp() + result.retry_in_s * interval '1 second',
        last_status = result.status, last_error = result.error,
        delivered_at = CASE result.state WHEN 'delivered' THEN clock_timestamp() ELSE delivered_at END
    FROM result
    WHERE delivery.id = result.id AND delivery.attempt = result.attempt AND delivery.state = 'pending'
    RETURNING delivery.id
),
logged AS (
    INSERT INTO webhook_attempt (delivery_id, attempt, url, headers, status, error, reply, latency_ms)
    SELECT id, attempt, url, headers, status, error, decode(reply, 'base64'), latency_ms FROM result JOIN written USING (id)
    -- One that was taken for lost may yet be finished, if the attempt after it was given back.
    ON CONFLICT DO NOTHING
),
recovered AS (
    UPDATE webhook_endpoint SET consecutive_failures = 0, failing_since = NULL, breaker_openings = 0, breaker_until = NULL
    WHERE id = ANY(CAST(%(well)s AS text[])) AND consecutive_failures > 0
)
SELECT id FROM written
"""

RELEASE = text("""
UPDATE webhook_delivery SET attempt = webhook_delivery.attempt - 1, tries = tries - 1, lease_until = NULL
FROM unnest(CAST(:ids AS text[]), CAST(:attempts AS bigint[])) AS mine (id, attempt)
WHERE webhook_delivery.id = mine.id AND webhook_delivery.attempt = mine.attempt AND state = 'pending'
""")

CLOSE = text("""
UPDATE webhook_delivery SET state = 'exhausted', lease_until = NULL, last_error = 'the webhook endpoint was disabled or deleted'
WHERE id IN (
    SELECT waiting.id FROM webhook_endpoint AS endpoint
    CROSS JOIN LATERAL (
        SELECT id FROM webhook_delivery AS waiting WHERE lane = endpoint.id AND state = 'pending' LIMIT :limit
    ) AS waiting
    WHERE endpoint.status <> 'enabled'
    LIMIT :limit
)
AND state = 'pending' AND (lease_until IS NULL OR lease_until < statement_timestamp())
RETURNING id
""")
