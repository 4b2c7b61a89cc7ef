-- Why attempts failed, what shows it, and what happened to a job between changes of its status.

-- JSON. It quotes what the job wrote, and goes with its results.
ALTER TABLE attempts ADD COLUMN snapshot TEXT;
ALTER TABLE events ADD COLUMN cause TEXT;
-- NULL: a change of the status.
ALTER TABLE events ADD COLUMN kind TEXT CHECK (kind IS NULL OR CASE kind
    WHEN 'foreign' THEN 1 WHEN 'gpu_fault' THEN 1 ELSE 0 END);
-- What it is about; an attempt has one of each.
ALTER TABLE events ADD COLUMN mark TEXT;
-- JSON.
ALTER TABLE events ADD COLUMN facts TEXT CHECK (facts IS NULL OR kind IS NOT NULL);

-- How many jobs failed by a cause: subjects (owners and everybody) and levels as in ``totals``. Few
-- jobs fail so, and each writes the rows of all levels.
CREATE TABLE failures (
    subject INTEGER NOT NULL,
    level INTEGER NOT NULL,
    at INTEGER NOT NULL,
    cause TEXT NOT NULL,
    jobs INTEGER NOT NULL,
    PRIMARY KEY (subject, level, at, cause)
) WITHOUT ROWID;
