-- Every statement of the store; ``sql.py`` reads this file. ``-- name --``, what it does, the text.
-- Placeholders of writes are positional: they run a thousand times a second, and tuples are the
-- cheapest thing to bind. A fragment (``select_`` and ``where_``) is no statement by itself.

-- last_numbers --
-- The highest job number and event in use. Numbers up to number_floor are given to nobody any more.
SELECT
    max(
        coalesce((SELECT max(number) FROM jobs), 0),
        coalesce((SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'number_floor'), 0)
    ),
    coalesce((SELECT max(seq) FROM events), 0)

-- count_pending --
-- How many jobs wait.
SELECT count(*) FROM jobs WHERE finished_at IS NULL AND current IS NULL

-- count_pending_for_gpus --
-- How many jobs wait for GPUs.
SELECT count(*) FROM jobs INDEXED BY jobs_lanes
WHERE finished_at IS NULL AND current IS NULL AND (gpus > 0) = 1

-- meta --
-- One value that the store keeps about itself.
SELECT value FROM meta WHERE key = :key

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
    created_at, plan, retry_of, gpu_type, min_vram, gpu, vram
) VALUES (?, ?, ?, 'pending', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- insert_spec --
-- What runs when the job does.
INSERT INTO specs (number, argv, is_shell, cwd, environment, env, artifacts, umask, stdin)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)

-- insert_event --
-- One change of a status.
INSERT INTO events (seq, number, uid, at, status, attempt, reason, message, cause)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)

-- insert_note --
-- Something that happened to a job.
INSERT INTO events (seq, number, uid, at, status, attempt, message, kind, mark, facts)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- count_notes --
-- How many there are of an attempt, of one kind, and whether there is this one.
SELECT count(*), max(mark = ?) FROM events WHERE number = ? AND attempt = ? AND kind = ?

-- insert_first_events --
-- The first event of each job of a batch: seq minus number is the same for all of them.
INSERT INTO events (seq, number, uid, at, status, attempt)
SELECT number + ?, number, uid, created_at, status, attempt
FROM jobs WHERE number BETWEEN ? AND ? ORDER BY number

-- job_to_move --
-- What a move has to know of a job.
SELECT j.status, j.attempt, j.uid, a.started_at, j.name, j.cpus, j.gpus, j.created_at, a.gpu_share
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
UPDATE jobs SET status = ?, current = NULL, charge_micro = charge_micro + ?
WHERE number = ? AND status = ? AND attempt = ?

-- finish_job --
-- The end of a job.
UPDATE jobs SET
    status = ?, finished_at = ?, reason = ?, cause = ?, message = ?, results = ?, digest = ?,
    result_bytes = ?, result_files = ?, progress = ?, expires_at = ?, run_us = ?,
    charge_micro = charge_micro + ?, listed_as = ?
WHERE number = ? AND status = ? AND attempt = ?

-- insert_attempt --
-- Where an attempt is going to run.
INSERT INTO attempts (number, attempt, boot_id, assigned_at, gpu_uuids, gpu_models, gpu_share)
VALUES (?, ?, ?, ?, ?, ?, ?)

-- start_attempt --
-- Its program was started.
UPDATE attempts SET started_at = ?, handle = ? WHERE number = ? AND attempt = ?

-- finish_attempt --
-- Its processes are gone.
UPDATE attempts SET
    finished_at = ?, reason = ?, cause = ?, message = ?, exit_code = ?, signal = ?, user_us = ?,
    system_us = ?, max_rss = ?, charge_micro = ?, snapshot = ?, gpu_use = ?,
    memory_peak = ?
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
    j.results, j.digest, j.result_bytes, j.result_files, j.progress, a.charge_micro,
    j.plan, j.retry_of, j.charge_micro, j.expires_at,
    j.gpu_type, j.min_vram, j.gpu, j.vram, a.gpu_uuids
FROM jobs j LEFT JOIN attempts a ON a.number = j.number AND a.attempt = j.current

-- where_number --
-- Fragment: one job.
WHERE j.number = :number AND j.deleted_at IS NULL

-- where_number_in --
-- Fragment: those of these jobs that there are and that the user may see; six, as five are named.
WHERE j.number IN (SELECT value FROM json_each(:numbers)) AND (:uid IS NULL OR j.uid = :uid)
AND j.deleted_at IS NULL ORDER BY j.number DESC LIMIT :limit

-- where_latest_of_owner --
-- Fragment: the job that this user submitted last.
WHERE j.uid = :uid AND j.deleted_at IS NULL ORDER BY j.number DESC LIMIT 1

-- where_latest --
-- Fragment: the job that anybody submitted last.
WHERE :uid IS NULL AND j.deleted_at IS NULL ORDER BY j.number DESC LIMIT 1

-- next_user_of_queue --
-- Who has jobs of a priority in the queue: the first one behind a user.
SELECT uid FROM jobs INDEXED BY jobs_lanes
WHERE finished_at IS NULL AND current IS NULL AND priority = :priority AND uid > :uid
ORDER BY uid LIMIT 1

-- where_lane --
-- Fragment: the next jobs of a user in one lane of the queue.
WHERE j.finished_at IS NULL AND j.current IS NULL
AND j.priority = :priority AND j.uid = :uid AND (j.gpus > 0) = :has_gpus
ORDER BY j.number LIMIT :limit

-- next_wish_of_lane --
-- What else a user's jobs in one lane of the queue wish for: the first behind a wish.
SELECT wish FROM jobs INDEXED BY jobs_wishes
WHERE finished_at IS NULL AND current IS NULL AND gpus > 0
AND priority = :priority AND uid = :uid AND wish > :wish
ORDER BY wish LIMIT 1

-- where_wish --
-- Fragment: the next jobs of a user in one lane of the queue that wish for the same.
WHERE j.finished_at IS NULL AND j.current IS NULL AND j.gpus > 0
AND j.priority = :priority AND j.uid = :uid AND j.wish = :wish
ORDER BY j.number LIMIT :limit

-- count_pending_of_owner --
-- How many jobs of a user wait, counted no further than it matters.
SELECT count(*) FROM (
    SELECT 1 FROM jobs INDEXED BY jobs_waiting
    WHERE uid = ? AND finished_at IS NULL AND current IS NULL LIMIT ?
)

-- where_active --
-- Fragment: every job of which something may run. The + keeps SQLite from walking all jobs in
-- order for the sake of these few.
WHERE j.finished_at IS NULL AND j.current IS NOT NULL ORDER BY +j.number

-- keys_of_final --
-- Fragment of a list: what one owner's jobs that ended so are in order of, and their numbers.
SELECT $value, j.number FROM jobs j INDEXED BY $index
WHERE j.uid = :uid AND j.listed_as = :listed_as

-- first_keys_of_final --
-- Fragment of a list: the same with whether they fit, of the first ones.
SELECT $value, j.number, 1 $conditions FROM jobs j INDEXED BY $index
WHERE j.uid = :uid AND j.listed_as = :listed_as

-- keys_of_waiting --
-- Fragment of a list: one owner's jobs in the queue.
SELECT $value, j.number FROM jobs j INDEXED BY jobs_waiting
WHERE j.uid = :uid AND j.finished_at IS NULL AND j.current IS NULL

-- keys_of_active --
-- Fragment of a list: one owner's jobs of which something may run.
SELECT $value, j.number FROM jobs j INDEXED BY jobs_active
WHERE j.uid = :uid AND j.status = :status AND j.finished_at IS NULL AND j.current IS NOT NULL

-- and_same_down --
-- Fragment of a list: behind a job, those of the same value.
AND $value = :value AND j.number < :after

-- and_same_up --
-- Fragment of a list.
AND $value = :value AND j.number > :after

-- and_down --
-- Fragment of a list: those of lower values.
AND $value < :value

-- and_up --
-- Fragment of a list: those of higher values.
AND $value > :value

-- and_none --
-- Fragment of a list: those without a value.
AND $value IS NULL

-- and_none_down --
-- Fragment of a list: behind a job without a value, the others without.
AND $value IS NULL AND j.number < :after

-- and_none_up --
-- Fragment of a list.
AND $value IS NULL AND j.number > :after

-- and_any --
-- Fragment of a list: those with a value.
AND $value IS NOT NULL

-- and_behind_down --
-- Fragment of a list: all that is behind a job, not in the order of an index.
AND ($value < :value OR $value IS NULL OR $value = :value AND j.number < :after)

-- and_behind_up --
-- Fragment of a list.
AND ($value > :value OR $value = :value AND j.number > :after)

-- and_behind_none_up --
-- Fragment of a list.
AND ($value IS NOT NULL OR j.number > :after)

-- and_name --
-- Fragment of a list.
AND j.name = :name

-- and_name_like --
-- Fragment of a list.
AND j.name GLOB :name

-- and_prefix --
-- Fragment of a list: what a pattern begins with.
AND j.name >= :prefix AND j.name < :prefix_end

-- and_created_from --
-- Fragment of a list.
AND j.created_at >= :created_from

-- and_created_before --
-- Fragment of a list.
AND j.created_at < :created_before

-- downwards --
-- Fragment: ends a list.
ORDER BY $value DESC, j.number DESC LIMIT :limit

-- upwards --
-- Fragment: ends a list.
ORDER BY $value, j.number LIMIT :limit

-- where_one_of --
-- Fragment: these jobs.
WHERE j.number IN (SELECT value FROM json_each(:numbers)) AND j.deleted_at IS NULL

-- uids --
-- Everyone who submitted a job.
SELECT uid FROM owners

-- users --
-- Their names.
SELECT uid, user FROM owners

-- uids_of_user --
-- Who submitted jobs under this name last.
SELECT uid FROM owners WHERE user = ?

-- name_owner --
-- Note who submits jobs.
INSERT INTO owners (uid, user) VALUES (?, ?) ON CONFLICT (uid) DO UPDATE SET user = excluded.user

-- queue_of_active --
-- Fragment of the queue: what may run, in the order of its assignments. There is an active job
-- for a slot at most, so they are sorted.
WHERE j.finished_at IS NULL AND j.current IS NOT NULL
AND (a.assigned_at, j.number) > (:value, :after) AND (j.gpus > 0 OR NOT :needs_gpus)
ORDER BY a.assigned_at, j.number LIMIT :limit

-- queue_of_waiting --
-- Fragment of the queue: what waits with one priority, in the order of the submits.
WHERE j.finished_at IS NULL AND j.current IS NULL AND j.priority = :value AND j.number > :after
AND (j.gpus > 0 OR NOT :needs_gpus)
ORDER BY j.number LIMIT :limit

-- specs --
-- What was submitted, of some jobs.
SELECT
    s.number, s.argv, s.is_shell, j.name, s.cwd, s.environment IS NOT NULL, n.entries, s.env, j.cpus,
    j.memory, j.gpus, j.timeout_s, j.priority, s.artifacts, j.retries, s.umask, s.stdin,
    j.gpu_type, j.min_vram, j.gpu, j.vram
FROM specs s JOIN jobs j ON j.number = s.number LEFT JOIN environments n ON n.id = s.environment
WHERE s.number IN (SELECT value FROM json_each(:numbers))

-- commands --
-- How the commands of some jobs begin: enough to know them by.
SELECT number, substr(argv, 1, 1024), is_shell FROM specs
WHERE number IN (SELECT value FROM json_each(:numbers))

-- attempts --
-- The attempts of a job, the first one first. The package belongs to the one that ended it.
SELECT
    a.attempt, a.boot_id, a.assigned_at, a.started_at, a.handle, a.gpu_uuids, a.finished_at,
    a.reason, a.cause, a.message, a.exit_code, a.signal, a.user_us, a.system_us, a.max_rss,
    j.results, j.digest, j.result_bytes, j.result_files, j.progress, a.charge_micro, a.snapshot,
    a.gpu_use, a.memory_peak
FROM attempts a LEFT JOIN jobs j
    ON j.number = a.number AND j.current = a.attempt AND j.finished_at IS NOT NULL
WHERE a.number = :number ORDER BY a.attempt

-- placement --
-- The boot in which an attempt was assigned, the models of its GPUs, and how much of them it has.
SELECT boot_id, gpu_models, gpu_share FROM attempts WHERE number = :number AND attempt = :attempt

-- select_event --
-- Fragment: the columns of an Event, in the order in which ``rows.event`` takes them.
SELECT
    e.seq, e.number, e.uid, e.at, e.status, e.attempt, e.reason, e.message, e.cause, e.kind, e.facts
FROM events e

-- event_span --
-- The oldest and the newest event; each min and max of its own, so that both come from the index.
SELECT coalesce((SELECT min(seq) FROM events), 0), coalesce((SELECT max(seq) FROM events), 0)

-- events_since --
-- Fragment: everybody's events; deleted jobs have none any more.
WHERE e.seq > :since AND e.seq <= :until
AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.number = e.number AND j.deleted_at IS NOT NULL)
ORDER BY e.seq LIMIT :limit

-- events_of_owner --
-- Fragment: the events of one user's jobs that are not deleted.
WHERE e.seq > :since AND e.seq <= :until AND e.uid = :uid
AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.number = e.number AND j.deleted_at IS NOT NULL)
ORDER BY e.seq LIMIT :limit

-- events_of_job --
-- Fragment: the events of one job.
WHERE e.number = :number AND e.seq > :since AND e.seq <= :until
AND (:uid IS NULL OR e.uid = :uid)
ORDER BY e.seq LIMIT :limit

-- newest_event --
-- When the last change of a status was.
SELECT at FROM events ORDER BY seq DESC LIMIT 1

-- set_meta --
-- Keep a value.
INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value

-- drop_meta --
-- Keep it no longer.
DELETE FROM meta WHERE key = ?

-- keys_of_expiring --
-- One owner's results that go until then, behind a place in that order.
SELECT j.expires_at, j.number FROM jobs j INDEXED BY jobs_expiry
WHERE j.uid = :uid AND j.results = 'kept' AND j.expires_at <= :until
AND (j.expires_at, j.number) > (:value, :after)
ORDER BY j.expires_at, j.number LIMIT :limit

-- job_held --
-- What has to be known of a job before its results go, are kept longer, or are shared.
SELECT status, uid, results, expires_at, coalesce(result_bytes, 0), name, created_at
FROM jobs WHERE number = ? AND deleted_at IS NULL

-- expire_job --
-- Its results are kept no longer.
UPDATE jobs SET results = 'expired' WHERE number = ?

-- keep_job --
-- Its results are kept until then.
UPDATE jobs SET expires_at = ? WHERE number = ?

-- delete_job --
-- What is left of a job that is deleted: its number and its figures.
UPDATE jobs SET deleted_at = ?, listed_as = NULL, name = NULL, message = NULL,
    results = CASE results WHEN 'kept' THEN 'expired' ELSE results END
WHERE number = ?

-- forget_attempts --
-- A deleted job's sentences, and what they quote.
UPDATE attempts SET message = NULL, snapshot = NULL
WHERE number = ? AND (message IS NOT NULL OR snapshot IS NOT NULL)

-- forget_snapshots --
-- What is quoted of logs that are gone.
UPDATE attempts SET snapshot = NULL WHERE number = ? AND snapshot IS NOT NULL

-- forget_events --
-- A deleted job's sentences.
UPDATE events SET message = NULL, mark = NULL, facts = NULL WHERE number = ? AND message IS NOT NULL

-- environment_of --
-- The base environment of a job.
SELECT environment FROM specs WHERE number = ?

-- delete_spec --
-- What a job was.
DELETE FROM specs WHERE number = ?

-- strip_spec --
-- The environment of a job: it holds secrets.
UPDATE specs SET environment = NULL, env = x'', is_stripped = 1
WHERE number = ? AND (environment IS NOT NULL OR env <> x'')

-- is_stripped --
-- Whether its environment is gone.
SELECT is_stripped FROM specs WHERE number = :number

-- drop_environment --
-- An environment that no job has any more.
DELETE FROM environments WHERE id = ? AND NOT EXISTS (SELECT 1 FROM specs WHERE environment = id)

-- insert_removal --
-- A package that is to go.
INSERT OR IGNORE INTO removals (number) VALUES (?)

-- removals --
-- Packages that are to go.
SELECT r.number, j.uid FROM removals r JOIN jobs j ON j.number = r.number
WHERE r.number > :after AND j.uid NOT IN (SELECT value FROM json_each(:without))
ORDER BY r.number LIMIT :limit

-- drop_removal --
-- It is gone.
DELETE FROM removals WHERE number = ?

-- add_usage --
-- The bytes of results that are kept of someone's.
UPDATE owners SET result_bytes = result_bytes + ? WHERE uid = ?

-- usage --
-- How many there are.
SELECT result_bytes FROM owners WHERE uid = :uid

-- insert_key --
-- A new API key.
INSERT INTO keys (uid, user, name, digest, plan, is_read_only, created_at, expires_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)

-- live_key --
-- A key of this name that somebody has.
SELECT number FROM keys WHERE uid = ? AND name = ? AND revoked_at IS NULL

-- keys --
-- All that are not revoked, and their digests.
SELECT number, uid, user, name, plan, is_read_only, created_at, expires_at, revoked_at, last_used_at,
    digest
FROM keys WHERE revoked_at IS NULL ORDER BY number

-- key --
-- One of them.
SELECT number, uid, user, name, plan, is_read_only, created_at, expires_at, revoked_at, last_used_at
FROM keys WHERE number = ?

-- revoke_key --
-- It counts no more.
UPDATE keys SET revoked_at = ? WHERE number = ?

-- use_key --
-- It was used.
UPDATE keys SET last_used_at = ? WHERE number = ?

-- insert_share --
-- A new permission to read results.
INSERT INTO shares (number, uid, digest, reader, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)

-- select_share --
-- Fragment: the columns of a Share, in the order in which ``rows.share`` takes them.
SELECT s.id, s.number, s.uid, j.user, s.reader, s.created_at, s.expires_at, s.uses, s.last_used_at,
    s.revoked_at
FROM shares s JOIN jobs j ON j.number = s.number

-- share_by_id --
-- Fragment.
WHERE s.id = :id

-- share_by_digest --
-- Fragment: a link.
WHERE s.digest = :digest

-- shares_of_owner --
-- Fragment: what somebody shares, the newest first.
WHERE s.uid = :uid AND s.id < :after AND s.revoked_at IS NULL ORDER BY s.id DESC LIMIT :limit

-- shares_of_job --
-- Fragment: how one job is shared.
WHERE s.number = :number AND s.id < :after AND s.revoked_at IS NULL AND (:uid IS NULL OR s.uid = :uid)
ORDER BY s.id DESC LIMIT :limit

-- shares --
-- Fragment: what everybody shares.
WHERE s.id < :after AND s.revoked_at IS NULL ORDER BY s.id DESC LIMIT :limit

-- revoke_shares --
-- They count no more.
UPDATE shares SET revoked_at = ? WHERE number = ? AND revoked_at IS NULL

-- use_share --
-- One more use.
UPDATE shares SET uses = uses + 1, last_used_at = ? WHERE id = ?

-- share_of_reader --
-- Fragment: by what a user may read a job's results now, the one that counts longest.
WHERE s.number = :number AND s.reader = :user AND s.revoked_at IS NULL AND s.expires_at > :now
ORDER BY s.expires_at DESC LIMIT 1

-- count_shares --
-- How many permissions count now.
SELECT count(*) FROM shares WHERE number = :number AND revoked_at IS NULL AND expires_at > :now

-- totals_until --
-- The day up to which days are closed.
SELECT value FROM meta WHERE key = 'totals_until'

-- totals_open --
-- The same, and the last quarter that has figures.
SELECT value, (
    SELECT max((SELECT max(at) FROM totals WHERE subject = uid AND level = 0)) FROM owners
) FROM meta WHERE key = 'totals_until'

-- set_totals_until --
-- Days are closed up to this one.
UPDATE meta SET value = ? WHERE key = 'totals_until'

-- add_total --
-- Add to a row.
INSERT INTO totals (
    subject, level, at, submitted, completed, failed, canceled, run_us, cpu_us, gpu_us,
    charge_micro, energy_mj, wait_us, waits
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (subject, level, at) DO UPDATE SET
    submitted = submitted + excluded.submitted,
    completed = completed + excluded.completed,
    failed = failed + excluded.failed,
    canceled = canceled + excluded.canceled,
    run_us = run_us + excluded.run_us,
    cpu_us = cpu_us + excluded.cpu_us,
    gpu_us = gpu_us + excluded.gpu_us,
    charge_micro = charge_micro + excluded.charge_micro,
    energy_mj = energy_mj + excluded.energy_mj,
    wait_us = wait_us + excluded.wait_us,
    waits = add_waits(waits, excluded.waits)

-- count_failure --
-- One more job that failed by a cause.
INSERT INTO failures (subject, level, at, cause, jobs) VALUES (?, ?, ?, ?, 1)
ON CONFLICT (subject, level, at, cause) DO UPDATE SET jobs = jobs + 1

-- sum_failures --
-- How many jobs failed by key and cause; a piece is [key, subject, level, begin, end].
SELECT json_extract(p.value, '$[0]'), f.cause, sum(f.jobs)
FROM json_each(:pieces) p CROSS JOIN failures f ON f.subject = json_extract(p.value, '$[1]')
    AND f.level = json_extract(p.value, '$[2]') AND f.at >= json_extract(p.value, '$[3]')
    AND f.at < json_extract(p.value, '$[4]')
GROUP BY 1, 2

-- sum_named_failures --
-- How many jobs failed by name and cause; a piece is [uid, block, level, begin, end].
SELECT n.name, f.cause, sum(f.jobs)
FROM json_each(:pieces) p
CROSS JOIN names n ON n.uid = json_extract(p.value, '$[0]') AND n.block = json_extract(p.value, '$[1]')
CROSS JOIN failures f ON f.subject = -1 - n.id
    AND f.level = json_extract(p.value, '$[2]') AND f.at >= json_extract(p.value, '$[3]')
    AND f.at < json_extract(p.value, '$[4]')
GROUP BY n.name, f.cause

-- close_quarters --
-- Everybody's quarters of days that are over.
INSERT INTO totals
SELECT -1, 0, t.at,
    sum(t.submitted), sum(t.completed), sum(t.failed), sum(t.canceled), sum(t.run_us),
    sum(t.cpu_us), sum(t.gpu_us), sum(t.charge_micro), sum(t.wait_us), sum_waits(t.waits),
    sum(t.energy_mj)
FROM owners o CROSS JOIN totals t ON t.subject = o.uid AND t.level = 0
    AND t.at >= :begin * 96 AND t.at < :end * 96
GROUP BY t.at

-- close_days --
-- Days that are over, of each subject.
INSERT INTO totals
SELECT t.subject, 1, t.at / 96,
    sum(t.submitted), sum(t.completed), sum(t.failed), sum(t.canceled), sum(t.run_us),
    sum(t.cpu_us), sum(t.gpu_us), sum(t.charge_micro), sum(t.wait_us), sum_waits(t.waits),
    sum(t.energy_mj)
FROM (
    SELECT uid AS subject FROM owners UNION ALL SELECT -1
    UNION ALL SELECT -1 - id FROM names WHERE block >= :begin / 32 AND block <= :end / 32
) s CROSS JOIN totals t ON t.subject = s.subject AND t.level = 0
    AND t.at >= :begin * 96 AND t.at < :end * 96
GROUP BY t.subject, t.at / 96

-- close_blocks --
-- Blocks of 32 days that are over, of each subject.
INSERT INTO totals
SELECT t.subject, 2, t.at / 32,
    sum(t.submitted), sum(t.completed), sum(t.failed), sum(t.canceled), sum(t.run_us),
    sum(t.cpu_us), sum(t.gpu_us), sum(t.charge_micro), sum(t.wait_us), sum_waits(t.waits),
    sum(t.energy_mj)
FROM (
    SELECT uid AS subject FROM owners UNION ALL SELECT -1
    UNION ALL SELECT -1 - id FROM names WHERE block >= :begin AND block < :end
) s CROSS JOIN totals t ON t.subject = s.subject AND t.level = 1
    AND t.at >= :begin * 32 AND t.at < :end * 32
GROUP BY t.subject, t.at / 32

-- names_of_block --
-- The names that an owner's jobs had in a block.
SELECT id, name FROM names WHERE uid = ? AND block = ?

-- add_name --
-- One more, or the row of those for which there is no room.
INSERT INTO names (uid, block, name) VALUES (?, ?, ?)

-- count_name --
-- Jobs were submitted under it.
UPDATE names SET jobs = jobs + ? WHERE id = ?

-- uncount_name --
-- One of them was deleted.
UPDATE names SET jobs = jobs - 1 WHERE uid = ? AND name = ? AND block = ?

-- count_of_name --
-- How many there are, of all blocks.
SELECT coalesce(sum(jobs), 0) FROM names WHERE uid = ? AND name = ?

-- forget_name --
-- The figures stay, without the name.
UPDATE names SET name = NULL WHERE uid = ? AND name = ?

-- first_start --
-- When a job ran first.
SELECT min(started_at) FROM attempts WHERE number = ?

-- first_total --
-- From where on there are figures of a subject.
SELECT min(at) FROM totals WHERE subject = :subject AND level = 0

-- last_total --
-- Up to where.
SELECT max(at) FROM totals WHERE subject = :subject AND level = 0

-- sum_totals --
-- Figures by key; a piece is [key, subject, level, begin, end].
SELECT json_extract(p.value, '$[0]'),
    sum(t.submitted), sum(t.completed), sum(t.failed), sum(t.canceled), sum(t.run_us),
    sum(t.cpu_us), sum(t.gpu_us), sum(t.charge_micro), sum(t.energy_mj), sum(t.wait_us),
    sum_waits(t.waits)
FROM json_each(:pieces) p CROSS JOIN totals t ON t.subject = json_extract(p.value, '$[1]')
    AND t.level = json_extract(p.value, '$[2]') AND t.at >= json_extract(p.value, '$[3]')
    AND t.at < json_extract(p.value, '$[4]')
GROUP BY 1

-- sum_named_totals --
-- Figures by name; a piece is [uid, block, level, begin, end].
SELECT n.name,
    sum(t.submitted), sum(t.completed), sum(t.failed), sum(t.canceled), sum(t.run_us),
    sum(t.cpu_us), sum(t.gpu_us), sum(t.charge_micro), sum(t.energy_mj), sum(t.wait_us),
    sum_waits(t.waits)
FROM json_each(:pieces) p
CROSS JOIN names n ON n.uid = json_extract(p.value, '$[0]') AND n.block = json_extract(p.value, '$[1]')
CROSS JOIN totals t ON t.subject = -1 - n.id
    AND t.level = json_extract(p.value, '$[2]') AND t.at >= json_extract(p.value, '$[3]')
    AND t.at < json_extract(p.value, '$[4]')
GROUP BY n.name
