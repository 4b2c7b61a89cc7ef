-- What jobs ask of GPUs, and the queue by whose jobs wait in it.

-- A part of a model's name; bytes that each has to have; bytes of one that others may share.
ALTER TABLE jobs ADD COLUMN gpu_type TEXT;
ALTER TABLE jobs ADD COLUMN min_vram INTEGER;
ALTER TABLE jobs ADD COLUMN vram INTEGER;
-- UUIDs of the GPUs that it has to be, separated by spaces.
ALTER TABLE jobs ADD COLUMN gpu TEXT;
-- What was paid for: a GPU may be gone when the attempt ends. A name a line, in the order of
-- ``gpu_uuids``.
ALTER TABLE attempts ADD COLUMN gpu_models TEXT NOT NULL DEFAULT '';

-- The heads of all users' queues, found without reading what waits behind them.
CREATE INDEX jobs_lanes ON jobs (priority, uid, gpus > 0)
    WHERE finished_at IS NULL AND current IS NULL;
