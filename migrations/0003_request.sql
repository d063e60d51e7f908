-- Requests and the grants they become. A grant keeps the request's id.
--
--   request: pending → granted | denied | cancelled | lapsed
--   grant:   live → expired | revoked | closed

CREATE TABLE request (
    id              TEXT   NOT NULL PRIMARY KEY,
    person          TEXT   NOT NULL REFERENCES person (id),
    device          TEXT   NOT NULL REFERENCES device (id),
    login           TEXT   NOT NULL,
    channels        TEXT   NOT NULL,            -- comma-separated, sorted
    duration_ms     BIGINT NOT NULL,
    reason          TEXT   NOT NULL,
    ticket          TEXT,
    emergency       BIGINT NOT NULL,
    state           TEXT   NOT NULL,
    asked_at        BIGINT NOT NULL,
    lapses_at       BIGINT NOT NULL,
    decided_at      BIGINT,
    why             TEXT   NOT NULL,            -- JSON array: policy's own words when it was asked
    approver_teams  TEXT   NOT NULL,            -- JSON array
    command         TEXT,                       -- set where one command alone is asked for
    forward_targets TEXT   NOT NULL DEFAULT '', -- HOST:PORT, comma-separated
    CONSTRAINT request_state_is_known CHECK (state IN ('pending', 'granted', 'denied', 'cancelled', 'lapsed')),
    CONSTRAINT request_decided_has_time CHECK ((state = 'pending') = (decided_at IS NULL)),
    CONSTRAINT request_duration_is_positive CHECK (duration_ms > 0),
    CONSTRAINT request_has_channels CHECK (channels <> ''),
    CONSTRAINT request_of_a_command_is_for_exec CHECK (command IS NULL OR channels = 'exec'),
    CONSTRAINT request_forwards_lead_somewhere CHECK ((forward_targets <> '') = (channels LIKE '%forward%'))
);
CREATE INDEX request_by_state ON request (state, asked_at);
CREATE INDEX request_by_person ON request (person, asked_at);

CREATE TABLE answer (
    request         TEXT   NOT NULL REFERENCES request (id),
    person          TEXT   NOT NULL REFERENCES person (id),
    at              BIGINT NOT NULL,
    verdict         TEXT   NOT NULL,
    comment         TEXT,
    teams           TEXT   NOT NULL,            -- JSON array: the answerer's teams at that time
    duration_ms     BIGINT,                     -- set where less than asked was allowed
    channels        TEXT,
    -- One person answers once: two approvals are two people.
    CONSTRAINT answer_is_one_per_person PRIMARY KEY (request, person),
    CONSTRAINT answer_verdict_is_known CHECK (verdict IN ('approve', 'deny')),
    CONSTRAINT answer_denial_says_why CHECK (verdict = 'approve' OR comment IS NOT NULL)
);

CREATE TABLE access_grant (
    request         TEXT   NOT NULL PRIMARY KEY REFERENCES request (id),
    person          TEXT   NOT NULL REFERENCES person (id),
    device          TEXT   NOT NULL REFERENCES device (id),
    login           TEXT   NOT NULL,
    channels        TEXT   NOT NULL,
    starts_at       BIGINT NOT NULL,
    ends_at         BIGINT NOT NULL,
    state           TEXT   NOT NULL,
    ended_at        BIGINT,
    ended_by        TEXT,
    command         TEXT,                       -- the one command that it is for
    forward_targets TEXT   NOT NULL DEFAULT '', -- where forwards may lead
    CONSTRAINT grant_state_is_known CHECK (state IN ('live', 'expired', 'revoked', 'closed')),
    CONSTRAINT grant_window_is_not_empty CHECK (ends_at > starts_at),
    CONSTRAINT grant_ended_says_when CHECK ((state = 'live') = (ended_at IS NULL)),
    CONSTRAINT grant_has_channels CHECK (channels <> ''),
    CONSTRAINT grant_of_a_command_is_for_exec CHECK (command IS NULL OR channels = 'exec'),
    CONSTRAINT grant_forwards_lead_somewhere CHECK ((forward_targets <> '') = (channels LIKE '%forward%'))
);
CREATE INDEX grant_by_person ON access_grant (person, device, state);
CREATE INDEX grant_by_end ON access_grant (state, ends_at);
