-- Sessions, the certificates minted for them, and what was recorded.
--
--   session:   opening → open → ended
--              opening → ended
--   recording: open → closed | interrupted; of these, when their time is over, the files are removed

CREATE TABLE session (
    id              TEXT   NOT NULL PRIMARY KEY,
    request         TEXT   NOT NULL REFERENCES access_grant (request),
    person          TEXT   NOT NULL REFERENCES person (id),
    device          TEXT   NOT NULL REFERENCES device (id),
    login           TEXT   NOT NULL,
    state           TEXT   NOT NULL,
    started_at      BIGINT NOT NULL,
    ended_at        BIGINT,
    end_reason      TEXT,
    end_detail      TEXT,
    client_address  TEXT   NOT NULL,
    client_kex      TEXT   NOT NULL,            -- SSH key exchange towards the engineer
    device_kex      TEXT   NOT NULL,            -- TLS group towards the device
    keep_ms         BIGINT,                     -- how long after its end recordings are kept; NULL: as configured
    CONSTRAINT session_state_is_known CHECK (state IN ('opening', 'open', 'ended')),
    CONSTRAINT session_ended_says_why
        CHECK ((state = 'ended') = (ended_at IS NOT NULL) AND (state = 'ended') = (end_reason IS NOT NULL))
);
CREATE INDEX session_by_start ON session (started_at);
CREATE INDEX session_by_state ON session (state);
CREATE INDEX session_by_end ON session (ended_at);
CREATE INDEX session_by_request ON session (request);

-- Every certificate ever minted. The primary key is what makes a serial unique for ever.
CREATE TABLE certificate (
    serial          BIGINT NOT NULL PRIMARY KEY,
    kind            TEXT   NOT NULL,
    ca              TEXT   NOT NULL,            -- fingerprint of the CA key
    principal       TEXT   NOT NULL,
    key_id          TEXT   NOT NULL,
    key_fingerprint TEXT   NOT NULL,
    valid_after     BIGINT NOT NULL,
    valid_before    BIGINT NOT NULL,
    issued_at       BIGINT NOT NULL,
    session         TEXT   REFERENCES session (id),
    -- Of an identity certificate: the CLI sign-in it came from. It stops working when that is revoked.
    token_family    TEXT   REFERENCES token_family (id),
    revoked_at      BIGINT,
    CONSTRAINT certificate_serial_is_positive CHECK (serial > 0),
    CONSTRAINT certificate_kind_is_known CHECK (kind IN ('identity', 'session', 'on_site', 'host')),
    CONSTRAINT certificate_window_is_not_empty CHECK (valid_before > valid_after),
    CONSTRAINT certificate_session_is_named CHECK (kind <> 'session' OR session IS NOT NULL)
);
CREATE INDEX certificate_by_session ON certificate (session);

CREATE TABLE recording (
    session         TEXT   NOT NULL REFERENCES session (id),
    number          BIGINT NOT NULL,            -- 0 is the events file
    kind            TEXT   NOT NULL,
    channel         BIGINT,
    file            TEXT   NOT NULL,            -- relative to the recordings folder
    state           TEXT   NOT NULL,
    started_at      BIGINT NOT NULL,
    sealed_bytes    BIGINT NOT NULL,            -- what the newest seal in the audit log covers
    sealed_sha256   TEXT   NOT NULL,
    closed_at       BIGINT,
    stored_sha256   TEXT,                       -- of the compressed file as it lies on the disk, once there is one
    stored_bytes    BIGINT,                     -- and its size
    removed_at      BIGINT,                     -- when its time was over
    files_gone_at   BIGINT,                     -- when its files were gone after that
    PRIMARY KEY (session, number),
    CONSTRAINT recording_file_is_unique UNIQUE (file),
    CONSTRAINT recording_kind_is_known CHECK (kind IN ('events', 'asciicast', 'output')),
    CONSTRAINT recording_state_is_known CHECK (state IN ('open', 'closed', 'interrupted')),
    CONSTRAINT recording_closed_says_when CHECK ((state = 'open') = (closed_at IS NULL)),
    CONSTRAINT recording_removed_was_closed CHECK (removed_at IS NULL OR state <> 'open'),
    CONSTRAINT recording_gone_was_removed CHECK (files_gone_at IS NULL OR removed_at IS NOT NULL)
);
CREATE INDEX recording_by_removal ON recording (removed_at, files_gone_at);
