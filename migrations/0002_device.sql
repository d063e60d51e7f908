-- Product lines, devices and their lives.
--
--   manufactured → provisioned → active ⇄ suspended
--                                active → quarantined → active
--   active, suspended → in_repair, transferred, unsupported, lost;  those → active
--   anything but retired → retired, which is the end
--
-- device_transition is the table of legal steps; a device row carries the step it last made, so that the
-- schema itself refuses an illegal one.

CREATE TABLE product_line (
    name            TEXT   NOT NULL PRIMARY KEY,
    title           TEXT   NOT NULL,
    cra_class       TEXT   NOT NULL,
    support_end     TEXT   NOT NULL,
    forward_targets TEXT   NOT NULL DEFAULT '', -- loopback HOST:PORT, comma-separated
    created_at      BIGINT NOT NULL,
    CONSTRAINT product_line_cra_class_is_known
        CHECK (cra_class IN ('default', 'important-1', 'important-2', 'critical'))
);

CREATE TABLE device_transition (
    from_state      TEXT   NOT NULL,
    to_state        TEXT   NOT NULL,
    PRIMARY KEY (from_state, to_state)
);
INSERT INTO device_transition (from_state, to_state) VALUES
    ('none', 'manufactured'), ('none', 'provisioned'), ('none', 'active'),
    ('manufactured', 'provisioned'), ('manufactured', 'retired'),
    ('provisioned', 'active'), ('provisioned', 'retired'),
    ('active', 'suspended'), ('active', 'quarantined'), ('active', 'in_repair'), ('active', 'transferred'),
    ('active', 'unsupported'), ('active', 'lost'), ('active', 'retired'),
    ('suspended', 'active'), ('suspended', 'quarantined'), ('suspended', 'in_repair'),
    ('suspended', 'transferred'), ('suspended', 'unsupported'), ('suspended', 'lost'), ('suspended', 'retired'),
    ('quarantined', 'active'), ('quarantined', 'lost'), ('quarantined', 'retired'),
    ('in_repair', 'active'), ('in_repair', 'lost'), ('in_repair', 'retired'),
    ('transferred', 'active'), ('transferred', 'lost'), ('transferred', 'retired'),
    ('unsupported', 'active'), ('unsupported', 'lost'), ('unsupported', 'retired'),
    ('lost', 'active'), ('lost', 'quarantined'), ('lost', 'retired');

CREATE TABLE device (
    id              TEXT   NOT NULL PRIMARY KEY,
    serial_number   TEXT   NOT NULL,
    product_line    TEXT   NOT NULL REFERENCES product_line (name),
    state           TEXT   NOT NULL,
    prior_state     TEXT   NOT NULL,
    public_key      TEXT,                       -- one-line OpenSSH key, born on the device
    key_fingerprint TEXT,
    labels          TEXT   NOT NULL,            -- JSON object of text
    shim_version    TEXT,
    bundle_version  BIGINT NOT NULL,            -- the newest trust bundle made for it; only grows
    bundle_digest   TEXT   NOT NULL DEFAULT '', -- SHA-256 of what that bundle says
    enrolled_at     BIGINT,
    last_seen_at    BIGINT,
    created_at      BIGINT NOT NULL,
    CONSTRAINT device_serial_number_is_unique UNIQUE (serial_number),
    -- A key enrolled twice would be two devices that prove to be each other.
    CONSTRAINT device_key_is_unique UNIQUE (key_fingerprint),
    CONSTRAINT device_transition_is_legal
        FOREIGN KEY (prior_state, state) REFERENCES device_transition (from_state, to_state),
    CONSTRAINT device_active_has_key
        CHECK (state IN ('manufactured', 'provisioned', 'retired') OR public_key IS NOT NULL)
);
CREATE INDEX device_by_line ON device (product_line, id);

-- The ledger: every step of every device, never changed.
CREATE TABLE ledger_entry (
    device          TEXT   NOT NULL REFERENCES device (id),
    number          BIGINT NOT NULL,
    at              BIGINT NOT NULL,
    from_state      TEXT   NOT NULL,
    to_state        TEXT   NOT NULL,
    by_whom         TEXT   NOT NULL,
    reason          TEXT   NOT NULL,
    PRIMARY KEY (device, number),
    CONSTRAINT ledger_step_is_legal
        FOREIGN KEY (from_state, to_state) REFERENCES device_transition (from_state, to_state)
);

-- Join tokens. The row of a used-up token stays: it says which devices came in by it.
CREATE TABLE join_token (
    secret_hash     TEXT   NOT NULL PRIMARY KEY,
    product_line    TEXT   NOT NULL REFERENCES product_line (name),
    labels          TEXT   NOT NULL,
    uses_allowed    BIGINT NOT NULL,
    uses_made       BIGINT NOT NULL,
    created_by      TEXT   NOT NULL,
    created_at      BIGINT NOT NULL,
    expires_at      BIGINT NOT NULL,
    -- Two devices racing for the last use: one of the two updates violates this.
    CONSTRAINT join_token_is_not_overused CHECK (uses_made >= 0 AND uses_made <= uses_allowed)
);
