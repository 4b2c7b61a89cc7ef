-- Every statement of the store; ``sql.py`` reads this file. ``-- name --``, what it does, the text.
-- Placeholders of writes are positional: they run a thousand times a second, and tuples are the
-- cheapest thing to bind. A fragment (``select_`` and ``where_``) is no statement by itself.

-- last_numbers --
-- The highest job number and event in use.
SELECT
    coalesce((SELECT max(number) FROM jobs), 0),
    coalesce((SELECT max(seq) FROM events), 0)

-- count_pending --
-- How many jobs wait.
SELECT count(*) FROM jobs WHERE finished_at IS NULL AND current IS NULL

-- meta --
-- One value that the store keeps about itself.
SELECT value FROM meta WHERE key = ?

-- environment_by_digest --
-- The id of a stored environment.
SELECT id FROM environments WHERE digest = ?

-- insert_environment --
-- Store an environment that is not there yet.
INSERT INTO environments (digest, entries) VALUES (?, ?)

-- insert_job --
-- A new job; the numbers are the writer's.
INSERT INTO jobs (
    number, uid, user, status, name, cpus, memory, gpus, timeout_s, priority, retries,
    created_at
) VALUES (?, ?, ?, 'pending', ?, ?, ?, ?, ?, ?, ?, ?)

-- insert_spec --
-- What runs when the job does.
INSERT INTO specs (number, argv, is_shell, cwd, environment, env, artifacts, umask, stdin)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)

-- insert_event --
-- One change of a status.
INSERT INTO events (seq, number, uid, at, status, attempt, reason, message)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)

-- insert_first_events --
-- The first event of each job of a batch: seq minus number is the same for all of them.
INSERT INTO events (seq, number, uid, at, status, attempt)
SELECT number + ?, number, uid, created_at, status, attempt
FROM jobs WHERE number BETWEEN ? AND ? ORDER BY number

-- job_to_move --
-- What a move has to know of a job.
SELECT j.status, j.attempt, j.uid, a.started_at
FROM jobs j LEFT JOIN attempts a ON a.number = j.number AND a.attempt = j.current
WHERE j.number = ?

-- assign_job --
-- pending -> assigned, with a new attempt.
UPDATE jobs SET status = ?, attempt = ?, current = ?
WHERE number = ? AND status = ? AND attempt = ?

-- advance_job --
-- A status change of an attempt in progress.
UPDATE jobs SET status = ? WHERE number = ? AND status = ? AND attempt = ?

-- requeue_job --
-- Back to the queue.
UPDATE jobs SET status = ?, current = NULL WHERE number = ? AND status = ? AND attempt = ?

-- finish_job --
-- The end of a job.
UPDATE jobs SET
    status = ?, finished_at = ?, reason = ?, cause = ?, message = ?, results = ?, digest = ?,
    result_bytes = ?, result_files = ?, progress = ?
WHERE number = ? AND status = ? AND attempt = ?

-- insert_attempt --
-- Where an attempt is going to run.
INSERT INTO attempts (number, attempt, boot_id, assigned_at) VALUES (?, ?, ?, ?)

-- start_attempt --
-- Its program was started.
UPDATE attempts SET started_at = ?, handle = ? WHERE number = ? AND attempt = ?

-- finish_attempt --
-- Its processes are gone.
UPDATE attempts SET
    finished_at = ?, reason = ?, cause = ?, message = ?, exit_code = ?, signal = ?, user_us = ?,
    system_us = ?, max_rss = ?
WHERE number = ? AND attempt = ?

-- command_of_job --
-- What makes two runs the same work.
SELECT j.name, s.argv FROM jobs j LEFT JOIN specs s ON s.number = j.number WHERE j.number = ?

-- learn_typical --
-- Take one more run into the mean; the last eight count most.
INSERT INTO typical (uid, key, runs, mean_us, last_at) VALUES (?, ?, 1, ?, ?)
ON CONFLICT (uid, key) DO UPDATE SET
    mean_us = mean_us + (excluded.mean_us - mean_us) / min(runs + 1, 8),
    runs = runs + 1,
    last_at = excluded.last_at

-- typical --
-- How long such a run takes.
SELECT mean_us FROM typical WHERE uid = :uid AND key = :key

-- select_job --
-- Fragment: the columns of a Job, in the order in which ``rows.job`` takes them.
SELECT
    j.number, j.uid, j.user, j.status, j.name, j.cpus, j.memory, j.gpus, j.timeout_s,
    j.priority, j.retries, j.attempt, j.created_at, a.assigned_at, a.started_at, j.finished_at,
    j.reason, j.cause, j.message, a.exit_code, a.signal, a.user_us, a.system_us, a.max_rss,
    j.results, j.digest, j.result_bytes, j.result_files, j.progress
FROM jobs j LEFT JOIN attempts a ON a.number = j.number AND a.attempt = j.current

-- where_number --
-- Fragment: one job.
WHERE j.number = :number

-- where_number_in --
-- Fragment: those of these jobs that there are and that the user may see; six, as five are named.
WHERE j.number IN (SELECT value FROM json_each(:numbers)) AND (:uid IS NULL OR j.uid = :uid)
ORDER BY j.number DESC LIMIT :limit

-- where_latest_of_owner --
-- Fragment: the job that this user submitted last.
WHERE j.uid = :uid ORDER BY j.number DESC LIMIT 1

-- where_latest --
-- Fragment: the job that anybody submitted last.
WHERE :uid IS NULL ORDER BY j.number DESC LIMIT 1

-- where_queue --
-- Fragment: the next jobs in the order in which they run.
WHERE j.finished_at IS NULL AND j.current IS NULL
ORDER BY j.priority DESC, j.number LIMIT :limit

-- where_active --
-- Fragment: every job of which something may run. The + keeps SQLite from walking all jobs in
-- order for the sake of these few.
WHERE j.finished_at IS NULL AND j.current IS NOT NULL ORDER BY +j.number

-- where_listed --
-- Fragment: begins the condition of a list; the parts below follow it, then the end.
WHERE j.number < :before

-- where_listed_active --
-- Fragment: begins the condition of a list of active jobs; the + as above.
WHERE +j.number < :before
AND j.finished_at IS NULL AND j.current IS NOT NULL AND j.status = :status

-- and_owner --
-- Fragment of a list.
AND j.uid = :uid

-- and_status --
-- Fragment of a list: walks the jobs from the newest; most of those that wait are there.
AND j.status = :status

-- and_final --
-- Fragment of a list of one owner: finds them by jobs_final.
AND j.finished_at IS NOT NULL AND j.status = :status

-- and_created_from --
-- Fragment of a list.
AND j.created_at >= :created_from

-- and_created_before --
-- Fragment of a list.
AND j.created_at < :created_before

-- newest_first --
-- Fragment: ends a list.
ORDER BY j.number DESC LIMIT :limit

-- newest_first_of_few --
-- Fragment: ends a list of active jobs; the + as above.
ORDER BY +j.number DESC LIMIT :limit

-- specs --
-- What was submitted, of some jobs.
SELECT
    s.number, s.argv, s.is_shell, j.name, s.cwd, s.environment IS NOT NULL, n.entries, s.env, j.cpus,
    j.memory, j.gpus, j.timeout_s, j.priority, s.artifacts, j.retries, s.umask, s.stdin
FROM specs s JOIN jobs j ON j.number = s.number LEFT JOIN environments n ON n.id = s.environment
WHERE s.number IN (SELECT value FROM json_each(:numbers))

-- attempts --
-- The attempts of a job, the first one first. The package belongs to the one that ended it.
SELECT
    a.attempt, a.boot_id, a.assigned_at, a.started_at, a.handle, a.gpu_uuids, a.finished_at,
    a.reason, a.cause, a.message, a.exit_code, a.signal, a.user_us, a.system_us, a.max_rss,
    j.results, j.digest, j.result_bytes, j.result_files, j.progress
FROM attempts a LEFT JOIN jobs j
    ON j.number = a.number AND j.current = a.attempt AND j.finished_at IS NOT NULL
WHERE a.number = :number ORDER BY a.attempt

-- boot_id --
-- The boot in which an attempt was assigned.
SELECT boot_id FROM attempts WHERE number = :number AND attempt = :attempt

-- select_event --
-- Fragment: the columns of an Event, in the order in which ``rows.event`` takes them.
SELECT e.seq, e.number, e.uid, e.at, e.status, e.attempt, e.reason, e.message FROM events e

-- event_span --
-- The oldest and the newest event; each min and max of its own, so that both come from the index.
SELECT coalesce((SELECT min(seq) FROM events), 0), coalesce((SELECT max(seq) FROM events), 0)

-- events_since --
-- Fragment: everybody's events.
WHERE e.seq > :since ORDER BY e.seq LIMIT :limit

-- events_of_owner --
-- Fragment: the events of one user's jobs.
WHERE e.seq > :since AND e.uid = :uid ORDER BY e.seq LIMIT :limit

-- events_of_job --
-- Fragment: the events of one job.
WHERE e.number = :number AND e.seq > :since AND (:uid IS NULL OR e.uid = :uid)
ORDER BY e.seq LIMIT :limit
