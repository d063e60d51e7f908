-- The audit log: every event, chained by hash, from time to time signed.
--
-- hash = SHA-256 over the previous hash and the event's canonical text (broker/src/audit). Rows are only
-- ever added; daypass-broker verify finds one that was changed, removed or put in.

CREATE TABLE audit_event (
    seq             BIGINT NOT NULL PRIMARY KEY,
    at              BIGINT NOT NULL,
    kind            TEXT   NOT NULL,
    actor           TEXT   NOT NULL,
    request         TEXT,
    session         TEXT,
    device          TEXT,
    detail          TEXT   NOT NULL,            -- JSON object
    prev_hash       TEXT   NOT NULL,
    hash            TEXT   NOT NULL,
    CONSTRAINT audit_event_hash_is_unique UNIQUE (hash),
    -- With prev_hash unique the chain cannot fork.
    CONSTRAINT audit_event_chain_does_not_fork UNIQUE (prev_hash)
);
CREATE INDEX audit_event_by_session ON audit_event (session, seq);
CREATE INDEX audit_event_by_request ON audit_event (request, seq);

-- One row, updated by each append: whoever appends holds its lock until the transaction ends, so events
-- are chained in the order of their commits.
CREATE TABLE audit_head (
    one             BIGINT NOT NULL PRIMARY KEY,
    seq             BIGINT NOT NULL,
    hash            TEXT   NOT NULL,
    CONSTRAINT audit_head_is_one_row CHECK (one = 1)
);
INSERT INTO audit_head (one, seq, hash)
    VALUES (1, 0, '0000000000000000000000000000000000000000000000000000000000000000');

CREATE TABLE audit_checkpoint (
    seq             BIGINT NOT NULL PRIMARY KEY,
    hash            TEXT   NOT NULL,
    at              BIGINT NOT NULL,
    body            TEXT   NOT NULL,            -- the signed text
    signature       TEXT   NOT NULL,            -- SSHSIG by the evidence key
    CONSTRAINT audit_checkpoint_is_of_an_event FOREIGN KEY (seq) REFERENCES audit_event (seq)
);
