-- What comes after a job's end: lists in any order, expiry, deleting, charges; and who may ask.

ALTER TABLE jobs ADD COLUMN plan TEXT;
ALTER TABLE jobs ADD COLUMN retry_of INTEGER REFERENCES jobs (number);
-- The sum over its attempts, millionths of the currency.
ALTER TABLE jobs ADD COLUMN charge_micro INTEGER NOT NULL DEFAULT 0;
-- From the start of the attempt that ended it to its end; NULL for one that never started.
ALTER TABLE jobs ADD COLUMN run_us INTEGER;
ALTER TABLE jobs ADD COLUMN expires_at INTEGER;
-- A deleted job stays for its number and its figures; whatever asks for jobs does not find it.
ALTER TABLE jobs ADD COLUMN deleted_at INTEGER CHECK (
    deleted_at IS NULL OR finished_at IS NOT NULL AND results <> 'kept' AND name IS NULL
);
-- 1 completed, 2 failed, 3 canceled, while lists show it as that; NULL while it is not over, and
-- when it is deleted. SQLite reads an index alone only where all conditions are on its columns.
ALTER TABLE jobs ADD COLUMN listed_as INTEGER CHECK (
    listed_as IS NULL OR deleted_at IS NULL AND CASE listed_as
        WHEN 1 THEN status = 'completed' WHEN 2 THEN status = 'failed'
        WHEN 3 THEN status = 'canceled' ELSE 0 END
);
ALTER TABLE attempts ADD COLUMN charge_micro INTEGER NOT NULL DEFAULT 0;
-- The base environment went with the job's results: it cannot run again as it was.
ALTER TABLE specs ADD COLUMN is_stripped INTEGER NOT NULL DEFAULT 0;

UPDATE jobs SET run_us = finished_at - (
    SELECT a.started_at FROM attempts a WHERE a.number = jobs.number AND a.attempt = jobs.current
) WHERE finished_at IS NOT NULL;
-- Seven days are what the specification promised to everyone while there were no plans.
UPDATE jobs SET expires_at = finished_at + 604800000000, listed_as = CASE status
    WHEN 'completed' THEN 1 WHEN 'failed' THEN 2 ELSE 3 END
WHERE finished_at IS NOT NULL;

DROP INDEX jobs_of_owner;
DROP INDEX jobs_final;
CREATE INDEX jobs_of_owner ON jobs (uid) WHERE deleted_at IS NULL;
-- A list is merged from these, one owner and status each, in the order that is asked for.
CREATE INDEX jobs_waiting ON jobs (uid, created_at) WHERE finished_at IS NULL AND current IS NULL;
CREATE INDEX jobs_final_created ON jobs (uid, listed_as, created_at, number, name)
    WHERE listed_as IS NOT NULL;
CREATE INDEX jobs_final_finished ON jobs (uid, listed_as, finished_at)
    WHERE listed_as IS NOT NULL;
CREATE INDEX jobs_final_duration ON jobs (uid, listed_as, run_us)
    WHERE listed_as IS NOT NULL;
CREATE INDEX jobs_final_name ON jobs (uid, listed_as, name)
    WHERE listed_as IS NOT NULL;
CREATE INDEX jobs_expiry ON jobs (uid, expires_at) WHERE results = 'kept';
-- Deleting a job asks whether another one has its environment.
CREATE INDEX specs_of_environment ON specs (environment) WHERE environment IS NOT NULL;

-- Who submitted jobs, under the latest name, and the bytes of results that are kept of theirs.
CREATE TABLE owners (
    uid INTEGER PRIMARY KEY,
    user TEXT NOT NULL,
    result_bytes INTEGER NOT NULL DEFAULT 0
);
INSERT INTO owners (uid, user, result_bytes)
SELECT uid, user, coalesce((SELECT sum(k.result_bytes) FROM jobs k WHERE k.uid = j.uid AND k.results = 'kept'), 0)
FROM jobs j WHERE number IN (SELECT max(number) FROM jobs GROUP BY uid);

-- Packages that no job has any more and that are still to be removed from the disk.
CREATE TABLE removals (
    number INTEGER PRIMARY KEY REFERENCES jobs (number)
);

CREATE TABLE keys (
    number INTEGER PRIMARY KEY,
    uid INTEGER NOT NULL,
    user TEXT NOT NULL,
    name TEXT NOT NULL,
    digest BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
    plan TEXT,
    is_read_only INTEGER NOT NULL CHECK (is_read_only IN (0, 1)),
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER,
    last_used_at INTEGER
);
CREATE UNIQUE INDEX keys_live ON keys (uid, name) WHERE revoked_at IS NULL;

CREATE TABLE shares (
    id INTEGER PRIMARY KEY,
    number INTEGER NOT NULL REFERENCES jobs (number),
    uid INTEGER NOT NULL,
    -- A link's secret as a hash, or the name of the user it is for.
    digest BLOB UNIQUE CHECK (length(digest) = 32),
    reader TEXT,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    uses INTEGER NOT NULL DEFAULT 0,
    last_used_at INTEGER,
    revoked_at INTEGER,
    CHECK ((digest IS NULL) <> (reader IS NULL))
);
CREATE INDEX shares_of_owner ON shares (uid);
CREATE INDEX shares_of_job ON shares (number, reader);
