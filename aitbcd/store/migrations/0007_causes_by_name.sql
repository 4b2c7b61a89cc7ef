-- Causes are counted by name, too: subjects of names as in ``totals``. Those that are known so far.

INSERT INTO failures (subject, level, at, cause, jobs)
SELECT -1 - id, level, quarter / quarters, cause, count(*)
FROM (
    SELECT j.cause, j.finished_at / 900000000 AS quarter, coalesce(
        (SELECT id FROM names n WHERE n.uid = j.uid AND n.name = j.name
            AND n.block = j.finished_at / 2764800000000),
        (SELECT id FROM names n WHERE n.uid = j.uid AND n.name IS NULL
            AND n.block = j.finished_at / 2764800000000)
    ) AS id
    FROM jobs j WHERE j.status = 'failed' AND j.cause IS NOT NULL AND j.name IS NOT NULL
)
CROSS JOIN (
    SELECT 0 AS level, 1 AS quarters UNION ALL SELECT 1, 96 UNION ALL SELECT 2, 3072
)
WHERE id IS NOT NULL
GROUP BY id, level, quarter / quarters, cause;
