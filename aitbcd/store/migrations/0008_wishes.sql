-- What a job asks of GPUs in one, to find the first of those that wait for another GPU behind
-- however many wait for one.
ALTER TABLE jobs ADD COLUMN wish TEXT AS (
    gpus || ' ' || coalesce(min_vram, '') || ' ' || coalesce(vram, '') || ' ' || coalesce(gpu, '')
    || ' ' || coalesce(gpu_type, '')
) VIRTUAL;

CREATE INDEX jobs_wishes ON jobs (priority, uid, wish)
    WHERE finished_at IS NULL AND current IS NULL AND gpus > 0;
