"""The store's schema: one SQL migration per version, and how they are applied."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from curtail.errors import CurtailError

MIGRATIONS = (
    """
    CREATE TABLE run (
        only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
        id TEXT NOT NULL, config TEXT NOT NULL, model TEXT NOT NULL, manifest TEXT NOT NULL,
        tokenizer TEXT NOT NULL, sequence_len INTEGER NOT NULL, state TEXT NOT NULL,
        created_wall REAL NOT NULL, started REAL NOT NULL, clock REAL NOT NULL,
        tokens INTEGER NOT NULL, cursor INTEGER NOT NULL, sample_limit INTEGER NOT NULL,
        regime TEXT NOT NULL, regime_since REAL NOT NULL, regime_seconds TEXT NOT NULL,
        loss_first REAL, loss_last REAL
    ) STRICT;
    CREATE TABLE returned (start INTEGER PRIMARY KEY, stop INTEGER NOT NULL) STRICT;
    CREATE TABLE join_tokens (id TEXT PRIMARY KEY, secret TEXT NOT NULL, created_wall REAL NOT NULL) STRICT;
    CREATE TABLE sites (
        site TEXT PRIMARY KEY, region TEXT NOT NULL, agent TEXT NOT NULL, machine TEXT NOT NULL,
        devices INTEGER NOT NULL, fence INTEGER NOT NULL, credential TEXT NOT NULL,
        left_run INTEGER NOT NULL, tokens INTEGER NOT NULL, joined_wall REAL NOT NULL
    ) STRICT;
    CREATE TABLE versions (
        version INTEGER PRIMARY KEY, round INTEGER, tokens INTEGER NOT NULL, digest TEXT NOT NULL,
        weights TEXT NOT NULL, updates TEXT NOT NULL, created_wall REAL NOT NULL, kept INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE rounds (
        round INTEGER PRIMARY KEY, kind TEXT NOT NULL, state TEXT NOT NULL, base_version INTEGER NOT NULL,
        opened_wall REAL NOT NULL, deadline_wall REAL NOT NULL, cut INTEGER NOT NULL, version INTEGER
    ) STRICT;
    CREATE TABLE members (
        round INTEGER NOT NULL REFERENCES rounds (round), site TEXT NOT NULL, job TEXT NOT NULL,
        fence INTEGER NOT NULL, state TEXT NOT NULL, lease_start INTEGER NOT NULL, lease_stop INTEGER NOT NULL,
        codec TEXT NOT NULL, samples INTEGER NOT NULL, tokens INTEGER NOT NULL, steps INTEGER NOT NULL,
        blob TEXT NOT NULL, digest TEXT NOT NULL, receipt TEXT NOT NULL, seconds REAL NOT NULL,
        loss_first REAL, loss_mean REAL, loss_last REAL, reason TEXT NOT NULL,
        PRIMARY KEY (round, site)
    ) STRICT;
    CREATE TABLE blobs (
        sha256 TEXT PRIMARY KEY, path TEXT NOT NULL, size INTEGER NOT NULL, kind TEXT NOT NULL
    ) STRICT;
    CREATE TABLE readings (
        region TEXT NOT NULL, point_time REAL NOT NULL, mci REAL, source TEXT NOT NULL, reason TEXT NOT NULL,
        PRIMARY KEY (region, point_time)
    ) STRICT;
    CREATE TABLE energy (
        id INTEGER PRIMARY KEY, site TEXT NOT NULL, region TEXT NOT NULL, phase TEXT NOT NULL,
        t0 REAL NOT NULL, t1 REAL NOT NULL, watts REAL NOT NULL, method TEXT NOT NULL, pue REAL NOT NULL,
        grid_share REAL NOT NULL, kwh REAL NOT NULL, mci REAL, kg REAL, curtailed INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE energy_open (
        site TEXT PRIMARY KEY, region TEXT NOT NULL, phase TEXT NOT NULL, t0 REAL NOT NULL, seen REAL NOT NULL,
        watts REAL NOT NULL, method TEXT NOT NULL, pue REAL NOT NULL, grid_share REAL NOT NULL,
        mci REAL, curtailed INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE events (
        id INTEGER PRIMARY KEY, at REAL NOT NULL, at_wall REAL NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL
    ) STRICT;
    """,
    """
    ALTER TABLE members ADD COLUMN arrived_wall REAL;
    ALTER TABLE members ADD COLUMN version INTEGER;
    ALTER TABLE members ADD COLUMN norm REAL;
    UPDATE members SET version = (SELECT rounds.version FROM rounds WHERE rounds.round = members.round)
        WHERE state = 'MERGED';
    CREATE INDEX members_waiting ON members (state) WHERE state IN ('LATE', 'COMMITTED');
    CREATE TABLE kept (
        site TEXT PRIMARY KEY, fence INTEGER NOT NULL, job TEXT NOT NULL,
        start INTEGER NOT NULL, stop INTEGER NOT NULL
    ) STRICT;
    """,
    """
    CREATE TABLE machines (
        site TEXT NOT NULL, agent TEXT NOT NULL, machine TEXT NOT NULL, devices INTEGER NOT NULL,
        address TEXT NOT NULL, port INTEGER NOT NULL, place INTEGER NOT NULL, fence INTEGER NOT NULL,
        credential TEXT NOT NULL, left_run INTEGER NOT NULL, joined_wall REAL NOT NULL,
        PRIMARY KEY (site, agent)
    ) STRICT;
    INSERT INTO machines SELECT site, agent, machine, devices, '', 0, 0, fence, credential, left_run, joined_wall
        FROM sites;
    CREATE UNIQUE INDEX machines_credential ON machines (credential);
    ALTER TABLE sites ADD COLUMN machines INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE sites DROP COLUMN agent;
    ALTER TABLE sites DROP COLUMN machine;
    ALTER TABLE sites DROP COLUMN devices;
    ALTER TABLE sites DROP COLUMN credential;
    """,
    """
    ALTER TABLE join_tokens ADD COLUMN role TEXT NOT NULL DEFAULT 'agent';
    ALTER TABLE join_tokens ADD COLUMN site TEXT NOT NULL DEFAULT '';
    ALTER TABLE join_tokens ADD COLUMN region TEXT NOT NULL DEFAULT '';
    ALTER TABLE join_tokens ADD COLUMN uses INTEGER;
    ALTER TABLE join_tokens ADD COLUMN used INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE join_tokens ADD COLUMN expires_wall REAL;
    ALTER TABLE join_tokens ADD COLUMN revoked_wall REAL;
    ALTER TABLE join_tokens ADD COLUMN note TEXT NOT NULL DEFAULT '';
    ALTER TABLE machines ADD COLUMN key TEXT NOT NULL DEFAULT '';
    ALTER TABLE machines ADD COLUMN expires_wall REAL NOT NULL DEFAULT 0;
    ALTER TABLE machines ADD COLUMN next_credential TEXT NOT NULL DEFAULT '';
    ALTER TABLE machines ADD COLUMN next_expires_wall REAL NOT NULL DEFAULT 0;
    ALTER TABLE machines ADD COLUMN former_credential TEXT NOT NULL DEFAULT '';
    ALTER TABLE machines ADD COLUMN former_until_wall REAL NOT NULL DEFAULT 0;
    CREATE INDEX machines_next ON machines (next_credential) WHERE next_credential != '';
    CREATE INDEX machines_former ON machines (former_credential) WHERE former_credential != '';
    CREATE TABLE nonces (
        key TEXT NOT NULL, nonce TEXT NOT NULL, until_wall REAL NOT NULL, PRIMARY KEY (key, nonce)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX nonces_until ON nonces (until_wall);
    CREATE TABLE uploads (sha256 TEXT PRIMARY KEY, site TEXT NOT NULL, begun_wall REAL NOT NULL) STRICT;
    ALTER TABLE blobs ADD COLUMN site TEXT NOT NULL DEFAULT '';
    """,
    """
    ALTER TABLE readings RENAME TO readings_before;
    CREATE TABLE readings (
        id INTEGER PRIMARY KEY, region TEXT NOT NULL, point_time REAL NOT NULL, mci REAL, source TEXT NOT NULL,
        reason TEXT NOT NULL, UNIQUE (region, point_time)
    ) STRICT;
    INSERT INTO readings (region, point_time, mci, source, reason)
        SELECT region, point_time, mci, source, reason FROM readings_before ORDER BY point_time, region;
    DROP TABLE readings_before;
    ALTER TABLE energy ADD COLUMN coverage REAL;
    ALTER TABLE energy ADD COLUMN machine_kwh REAL;
    ALTER TABLE energy ADD COLUMN gpu_kwh REAL;
    ALTER TABLE energy ADD COLUMN host_kwh REAL;
    ALTER TABLE energy ADD COLUMN mci_raw REAL;
    ALTER TABLE energy ADD COLUMN source TEXT;
    ALTER TABLE energy ADD COLUMN point_time REAL;
    ALTER TABLE energy ADD COLUMN threshold REAL;
    ALTER TABLE energy ADD COLUMN tokens INTEGER;
    ALTER TABLE energy ADD COLUMN steps INTEGER;
    ALTER TABLE energy ADD COLUMN network_bytes INTEGER;
    ALTER TABLE energy ADD COLUMN flags TEXT;
    ALTER TABLE energy ADD COLUMN reason TEXT;
    ALTER TABLE energy_open ADD COLUMN more TEXT NOT NULL DEFAULT '';
    CREATE TABLE settled (
        id INTEGER PRIMARY KEY, entry INTEGER NOT NULL REFERENCES energy (id), basis TEXT NOT NULL,
        revision INTEGER NOT NULL, mci REAL NOT NULL, kg REAL NOT NULL, source TEXT NOT NULL, model TEXT NOT NULL,
        asked REAL NOT NULL, UNIQUE (entry, basis, revision)
    ) STRICT;
    CREATE TABLE chain (
        seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, record INTEGER NOT NULL, hash TEXT NOT NULL,
        UNIQUE (kind, record)
    ) STRICT;
    """,
    """
    CREATE TABLE batteries (region TEXT PRIMARY KEY, stored_wh REAL NOT NULL, at REAL NOT NULL) STRICT;
    CREATE TABLE switched (
        site TEXT PRIMARY KEY, region TEXT NOT NULL, state TEXT NOT NULL, since REAL NOT NULL,
        since_wall REAL NOT NULL, failures INTEGER NOT NULL, retry_wall REAL NOT NULL, note TEXT NOT NULL
    ) STRICT;
    """,
    """
    CREATE TABLE overrides (
        id INTEGER PRIMARY KEY, region TEXT NOT NULL, train INTEGER NOT NULL, since REAL NOT NULL, until REAL NOT NULL,
        by_whom TEXT NOT NULL, reason TEXT NOT NULL, placed_wall REAL NOT NULL, ended REAL
    ) STRICT;
    """,
    """
    CREATE TABLE orders (
        id INTEGER PRIMARY KEY, of_order INTEGER REFERENCES orders (id), act TEXT NOT NULL, region TEXT NOT NULL,
        at REAL NOT NULL, until REAL, by_whom TEXT NOT NULL, reason TEXT NOT NULL, wall REAL
    ) STRICT;
    CREATE UNIQUE INDEX orders_ended ON orders (of_order) WHERE of_order IS NOT NULL;
    INSERT INTO orders SELECT id, NULL, CASE train WHEN 1 THEN 'train' ELSE 'pause' END, region, since, until, by_whom,
        reason, placed_wall FROM overrides ORDER BY id;
    INSERT INTO orders (of_order, act, region, at, until, by_whom, reason, wall)
        SELECT id, CASE WHEN ended IS NULL THEN 'expired' ELSE 'ended' END, region, COALESCE(ended, until), NULL, '',
            '', NULL FROM overrides
        WHERE ended IS NOT NULL OR until <= (SELECT clock FROM run) ORDER BY COALESCE(ended, until), id;
    DROP TABLE overrides;
    CREATE TABLE chain_due (kind TEXT PRIMARY KEY) STRICT;
    INSERT INTO chain_due VALUES ('order');
    """,
    """
    CREATE INDEX energy_ended ON energy (t1);
    CREATE INDEX members_of_site ON members (site, round);
    CREATE INDEX members_with_norm ON members (round) WHERE norm IS NOT NULL;
    CREATE INDEX versions_kept ON versions (version) WHERE kept = 1;
    """,
    """
    CREATE TABLE provisioned (
        site TEXT NOT NULL, machine INTEGER NOT NULL, state TEXT NOT NULL, since_wall REAL NOT NULL, key TEXT NOT NULL,
        native TEXT NOT NULL, token TEXT NOT NULL, span INTEGER, requested_wall REAL NOT NULL, started_wall REAL,
        failures INTEGER NOT NULL, retry_wall REAL NOT NULL, note TEXT NOT NULL, PRIMARY KEY (site, machine)
    ) STRICT;
    CREATE TABLE provision_spans (
        id INTEGER PRIMARY KEY, site TEXT NOT NULL, machine INTEGER NOT NULL, key TEXT NOT NULL, price REAL NOT NULL,
        begun_wall REAL, ended_wall REAL, boot_s REAL
    ) STRICT;
    CREATE INDEX provision_spans_ended ON provision_spans (ended_wall);
    CREATE TABLE site_orders (
        site TEXT PRIMARY KEY, action TEXT NOT NULL, by_whom TEXT NOT NULL, at_wall REAL NOT NULL
    ) STRICT;
    """,
)
"""One script per schema version. Released scripts are never changed; new ones are appended."""


def migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[str] = MIGRATIONS) -> None:
    """Apply the missing migrations, each in its own transaction."""
    have = connection.execute("PRAGMA user_version").fetchone()[0]
    if have > len(migrations):
        raise CurtailError(
            f"the store {path} was written by a newer curtail (schema {have}, known {len(migrations)})",
            "install the newer curtail",
        )
    for number in range(have, len(migrations)):
        connection.execute("BEGIN IMMEDIATE")
        for statement in migrations[number].split(";"):
            if statement.strip():
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number + 1}")
        connection.execute("COMMIT")
