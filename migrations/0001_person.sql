-- People, and how they prove who they are.
--
--   cli_sign_in:   waiting → confirmed → spent
--                          ↘ refused
--   refresh_token: live → spent            (spent is kept: using it again revokes its family)
--   token_family:  live → revoked
--
-- Times are milliseconds since 1970 UTC. No secret stands here in the clear: codes and tokens are
-- SHA-256 in hex.

CREATE TABLE person (
    id              TEXT   NOT NULL PRIMARY KEY,
    issuer          TEXT   NOT NULL,
    subject         TEXT   NOT NULL,
    email           TEXT   NOT NULL,
    name            TEXT   NOT NULL,
    teams           TEXT   NOT NULL,            -- JSON array of the groups at the last sign-in
    mfa             BIGINT NOT NULL,
    first_seen_at   BIGINT NOT NULL,
    signed_in_at    BIGINT NOT NULL,
    -- One person is one subject at one issuer; an e-mail address is a label and may change.
    CONSTRAINT person_is_one_subject UNIQUE (issuer, subject),
    CONSTRAINT person_mfa_is_a_flag CHECK (mfa IN (0, 1))
);

-- An authorization request sent to the IdP. Taken out, in one statement, by the callback: a state
-- works once.
CREATE TABLE sign_in_attempt (
    state_hash      TEXT   NOT NULL PRIMARY KEY,
    nonce           TEXT   NOT NULL,
    pkce_verifier   TEXT   NOT NULL,
    browser_hash    TEXT   NOT NULL,            -- the browser that started it, by its own cookie
    next_path       TEXT   NOT NULL,
    expires_at      BIGINT NOT NULL
);

CREATE TABLE browser_session (
    token_hash      TEXT   NOT NULL PRIMARY KEY,
    person          TEXT   NOT NULL REFERENCES person (id),
    csrf_hash       TEXT   NOT NULL,
    created_at      BIGINT NOT NULL,
    signed_in_at    BIGINT NOT NULL,
    mfa             BIGINT NOT NULL,            -- of this sign-in, not of the person's newest
    expires_at      BIGINT NOT NULL,
    CONSTRAINT browser_session_mfa_is_a_flag CHECK (mfa IN (0, 1))
);
CREATE INDEX browser_session_by_expiry ON browser_session (expires_at);

CREATE TABLE cli_sign_in (
    device_code_hash TEXT  NOT NULL PRIMARY KEY,
    user_code       TEXT   NOT NULL,
    client          TEXT   NOT NULL,
    address         TEXT   NOT NULL,
    state           TEXT   NOT NULL,
    person          TEXT   REFERENCES person (id),
    signed_in_at    BIGINT,
    mfa             BIGINT,                     -- both of the browser session that confirmed it
    asked_at        BIGINT NOT NULL,
    expires_at      BIGINT NOT NULL,
    polled_at       BIGINT NOT NULL,
    interval_s      BIGINT NOT NULL,
    CONSTRAINT cli_sign_in_user_code_is_unique UNIQUE (user_code),
    CONSTRAINT cli_sign_in_state_is_known CHECK (state IN ('waiting', 'confirmed', 'refused', 'spent')),
    CONSTRAINT cli_sign_in_confirmed_has_person
        CHECK (state IN ('waiting', 'refused') OR (person IS NOT NULL AND signed_in_at IS NOT NULL AND mfa IS NOT NULL))
);

CREATE TABLE token_family (
    id              TEXT   NOT NULL PRIMARY KEY,
    person          TEXT   NOT NULL REFERENCES person (id),
    client          TEXT   NOT NULL,
    signed_in_at    BIGINT NOT NULL,
    mfa             BIGINT NOT NULL,
    expires_at      BIGINT NOT NULL,
    revoked_at      BIGINT,
    revoked_why     TEXT,
    CONSTRAINT token_family_revoked_says_why CHECK ((revoked_at IS NULL) = (revoked_why IS NULL))
);

CREATE TABLE refresh_token (
    token_hash      TEXT   NOT NULL PRIMARY KEY,
    family          TEXT   NOT NULL REFERENCES token_family (id),
    state           TEXT   NOT NULL,
    created_at      BIGINT NOT NULL,
    CONSTRAINT refresh_token_state_is_known CHECK (state IN ('live', 'spent'))
);
CREATE INDEX refresh_token_by_family ON refresh_token (family);
