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
-- The first has all that a list can be sorted by: it is read from end to end for what is rare.
CREATE INDEX jobs_final_created
    ON jobs (uid, listed_as, created_at, number, name, finished_at, run_us)
    WHERE listed_as IS NOT NULL;
CREATE INDEX jobs_final_finished ON jobs (uid, listed_as, finished_at)
    WHERE listed_as IS NOT NULL;
CREATE INDEX jobs_final_duration ON jobs (uid, listed_as, run_us)
    WHERE listed_as IS NOT NULL;
CREATE INDEX jobs_final_name ON jobs (uid, listed_as, name, number, created_at)
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

-- Figures as they happen (totals.py): of an owner (his uid), of everybody (-1), of a name in a
-- block (-1 - its id), over a quarter of an hour (level 0), a day (1), a block of 32 days (2).
CREATE TABLE totals (
    subject INTEGER NOT NULL,
    level INTEGER NOT NULL,
    at INTEGER NOT NULL,
    submitted INTEGER NOT NULL,
    completed INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    canceled INTEGER NOT NULL,
    run_us INTEGER NOT NULL,
    cpu_us INTEGER NOT NULL,
    gpu_us INTEGER NOT NULL,
    charge_micro INTEGER NOT NULL,
    wait_us INTEGER NOT NULL,
    waits BLOB NOT NULL,
    PRIMARY KEY (subject, level, at)
) WITHOUT ROWID;
CREATE TABLE names (
    id INTEGER PRIMARY KEY,
    uid INTEGER NOT NULL,
    block INTEGER NOT NULL,
    -- NULL where it is forgotten, and for all names that found no room.
    name TEXT,
    -- How many jobs were submitted under it in the block and are not deleted.
    jobs INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX names_of_block ON names (uid, block);
CREATE INDEX names_by_name ON names (uid, name) WHERE name IS NOT NULL;
-- The first totals that are added close all days before theirs.
INSERT INTO meta (key, value) VALUES ('totals_until', 0);

INSERT INTO names (uid, block, name, jobs)
SELECT uid, block, CASE WHEN place <= 255 THEN name END, jobs FROM (
    SELECT uid, block, name, sum(jobs) AS jobs,
        row_number() OVER (PARTITION BY uid, block ORDER BY name) AS place
    FROM (
        SELECT uid, created_at / 2764800000000 AS block, name, 1 AS jobs FROM jobs
        UNION ALL SELECT uid, finished_at / 2764800000000, name, 0 FROM jobs
        UNION ALL SELECT j.uid, a.finished_at / 2764800000000, j.name, 0
        FROM attempts a JOIN jobs j ON j.number = a.number
    )
    WHERE name IS NOT NULL AND block IS NOT NULL GROUP BY uid, block, name
)
WHERE place <= 256;

CREATE VIEW moments AS
SELECT uid, name, created_at AS at, 1 AS submitted, 0 AS completed, 0 AS failed, 0 AS canceled,
    0 AS run_us, 0 AS cpu_us, 0 AS gpu_us, NULL AS wait_us
FROM jobs
UNION ALL
SELECT j.uid, j.name, j.finished_at, 0, j.listed_as = 1, j.listed_as = 2, j.listed_as = 3,
    CASE j.listed_as WHEN 1 THEN coalesce(j.run_us, 0) ELSE 0 END, 0, 0,
    (SELECT max(0, min(a.started_at) - j.created_at) FROM attempts a WHERE a.number = j.number)
FROM jobs j WHERE j.finished_at IS NOT NULL
UNION ALL
SELECT j.uid, j.name, a.finished_at, 0, 0, 0, 0, 0,
    j.cpus * max(0, a.finished_at - a.started_at), j.gpus * max(0, a.finished_at - a.started_at), NULL
FROM attempts a JOIN jobs j ON j.number = a.number
WHERE a.finished_at IS NOT NULL AND a.started_at IS NOT NULL;

INSERT INTO totals
SELECT uid, 0, at / 900000000, sum(submitted), sum(completed), sum(failed), sum(canceled), sum(run_us),
    sum(cpu_us), sum(gpu_us), 0, coalesce(sum(wait_us), 0), sum_waits(waits_of(wait_us))
FROM moments GROUP BY uid, at / 900000000;

INSERT INTO totals
SELECT -1 - id, 0, quarter, sum(submitted), sum(completed), sum(failed), sum(canceled), sum(run_us),
    sum(cpu_us), sum(gpu_us), 0, coalesce(sum(wait_us), 0), sum_waits(waits_of(wait_us))
FROM (
    SELECT m.*, m.at / 900000000 AS quarter, coalesce(
        (SELECT id FROM names n WHERE n.uid = m.uid AND n.name = m.name
            AND n.block = m.at / 2764800000000),
        (SELECT id FROM names n WHERE n.uid = m.uid AND n.name IS NULL
            AND n.block = m.at / 2764800000000)
    ) AS id
    FROM moments m WHERE m.name IS NOT NULL
)
GROUP BY id, quarter;

DROP VIEW moments;
