-- Jobs, what they ask for, their attempts and every change of their status.
-- A CHECK with IN (a, b, c) builds a table of its list for every row that is written, which tripled
-- the time of an insert: CASE does not. Times are integer microseconds UTC. Lists of byte strings are one BLOB, each item ended by NUL.

-- A job's id is computed from its number and this offset (ids.py).
CREATE TABLE meta (
    key TEXT NOT NULL PRIMARY KEY,
    value NOT NULL
) WITHOUT ROWID;
INSERT INTO meta (key, value) VALUES ('id_offset', abs(random() % 1099511627776));

-- Base environments, each stored once. They hold secrets.
CREATE TABLE environments (
    id INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
    entries BLOB NOT NULL CHECK (typeof(entries) = 'blob')
);

CREATE TABLE jobs (
    number INTEGER PRIMARY KEY CHECK (number > 0),
    uid INTEGER NOT NULL CHECK (uid >= 0),
    user TEXT NOT NULL,
    status TEXT NOT NULL,
    name TEXT,
    cpus INTEGER NOT NULL,
    memory INTEGER,
    gpus INTEGER NOT NULL,
    timeout_s REAL,
    priority INTEGER NOT NULL CHECK (priority BETWEEN -1 AND 1),
    retries INTEGER NOT NULL,
    -- How many attempts there were.
    attempt INTEGER NOT NULL DEFAULT 0,
    -- The attempt in progress, or the one that ended the job; NULL in the queue, and for a job
    -- that ended there.
    current INTEGER CHECK (current = attempt),
    created_at INTEGER NOT NULL,
    finished_at INTEGER,
    reason TEXT CHECK (reason IS NULL OR CASE reason
        WHEN 'exit' THEN 1 WHEN 'signal' THEN 1 WHEN 'timeout' THEN 1 WHEN 'canceled' THEN 1
        WHEN 'cannot_start' THEN 1 WHEN 'lost' THEN 1 WHEN 'storage' THEN 1
        WHEN 'dependency' THEN 1 WHEN 'cancellation_failed' THEN 1 ELSE 0
    END),
    cause TEXT,
    message TEXT,
    results TEXT CHECK (
        results IS NULL OR CASE results WHEN 'kept' THEN 1 WHEN 'expired' THEN 1 WHEN 'none' THEN 1
        ELSE 0 END
    ),
    -- sha256 of the package's manifest.
    digest BLOB CHECK (length(digest) = 32),
    result_bytes INTEGER,
    result_files INTEGER,
    progress INTEGER CHECK (progress BETWEEN 0 AND 100),
    CHECK (CASE status
        WHEN 'pending' THEN current IS NULL AND finished_at IS NULL AND reason IS NULL
        WHEN 'assigned' THEN current IS NOT NULL AND finished_at IS NULL AND reason IS NULL
        WHEN 'running' THEN current IS NOT NULL AND finished_at IS NULL AND reason IS NULL
        WHEN 'canceling' THEN current IS NOT NULL AND finished_at IS NULL AND reason IS NULL
        WHEN 'completed' THEN current IS NOT NULL AND finished_at IS NOT NULL AND reason IS NULL
        WHEN 'failed' THEN finished_at IS NOT NULL AND reason IS NOT NULL
        WHEN 'canceled' THEN finished_at IS NOT NULL AND reason IS NOT NULL
        ELSE 0
    END),
    CHECK ((results IS NOT NULL) = (finished_at IS NOT NULL))
);

-- Four disjoint views. Only what moves a job from one to another touches them: 'running' changes
-- no index. Each holds the row's number behind its columns, so all are in order of it.
CREATE INDEX jobs_of_owner ON jobs (uid);
CREATE INDEX jobs_queue ON jobs (priority DESC) WHERE finished_at IS NULL AND current IS NULL;
CREATE INDEX jobs_active ON jobs (uid) WHERE finished_at IS NULL AND current IS NOT NULL;
CREATE INDEX jobs_final ON jobs (uid, status) WHERE finished_at IS NOT NULL;

-- A number is one more than the highest there is: it stays unique for ever only as long as no row
-- goes. (AUTOINCREMENT does the same for the price of one more write a row.)
CREATE TRIGGER jobs_stay BEFORE DELETE ON jobs
BEGIN
    SELECT raise(ABORT, 'rows of jobs are never deleted: their numbers would be used again');
END;

-- What goes when a user deletes a job.
CREATE TABLE specs (
    number INTEGER PRIMARY KEY REFERENCES jobs (number),
    argv BLOB NOT NULL CHECK (typeof(argv) = 'blob'),
    is_shell INTEGER NOT NULL CHECK (is_shell IN (0, 1)),
    cwd BLOB,
    environment INTEGER REFERENCES environments (id),
    env BLOB NOT NULL,
    artifacts BLOB NOT NULL,
    umask INTEGER,
    stdin BLOB
);

CREATE TABLE attempts (
    number INTEGER NOT NULL REFERENCES jobs (number),
    attempt INTEGER NOT NULL CHECK (attempt > 0),
    boot_id TEXT NOT NULL,
    assigned_at INTEGER NOT NULL,
    started_at INTEGER,
    handle TEXT,
    gpu_uuids TEXT NOT NULL DEFAULT '',
    finished_at INTEGER,
    reason TEXT CHECK (reason IS NULL OR CASE reason
        WHEN 'exit' THEN 1 WHEN 'signal' THEN 1 WHEN 'timeout' THEN 1 WHEN 'canceled' THEN 1
        WHEN 'cannot_start' THEN 1 WHEN 'lost' THEN 1 WHEN 'storage' THEN 1
        WHEN 'dependency' THEN 1 WHEN 'cancellation_failed' THEN 1 ELSE 0
    END),
    cause TEXT,
    message TEXT,
    exit_code INTEGER,
    signal INTEGER,
    user_us INTEGER,
    system_us INTEGER,
    max_rss INTEGER,
    PRIMARY KEY (number, attempt)
) WITHOUT ROWID;

CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    number INTEGER NOT NULL REFERENCES jobs (number),
    uid INTEGER NOT NULL,
    at INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (CASE status
        WHEN 'pending' THEN 1 WHEN 'assigned' THEN 1 WHEN 'running' THEN 1 WHEN 'canceling' THEN 1
        WHEN 'completed' THEN 1 WHEN 'failed' THEN 1 WHEN 'canceled' THEN 1 ELSE 0
    END),
    attempt INTEGER NOT NULL,
    reason TEXT,
    message TEXT
);
CREATE INDEX events_of_job ON events (number);

-- How long completed runs of the same name or command took, a moving mean.
CREATE TABLE typical (
    uid INTEGER NOT NULL,
    key BLOB NOT NULL CHECK (length(key) = 16),
    runs INTEGER NOT NULL,
    mean_us INTEGER NOT NULL,
    last_at INTEGER NOT NULL,
    PRIMARY KEY (uid, key)
) WITHOUT ROWID;
