-- The broker's signing keys: public halves and states. Private halves are in encrypted files.
--
--   next → active → retiring → retired

CREATE TABLE ca_key (
    fingerprint     TEXT   NOT NULL PRIMARY KEY,
    purpose         TEXT   NOT NULL,
    state           TEXT   NOT NULL,
    public_key      TEXT   NOT NULL,
    created_at      BIGINT NOT NULL,
    CONSTRAINT ca_key_purpose_is_known CHECK (purpose IN ('identity', 'user', 'host', 'evidence', 'token')),
    CONSTRAINT ca_key_state_is_known CHECK (state IN ('next', 'active', 'retiring', 'retired'))
);
