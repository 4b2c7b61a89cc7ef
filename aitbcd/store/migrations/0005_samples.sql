-- What attempts made of their GPUs.

-- Millionths of each of its GPUs that an attempt has: of its memory, where it is on a share.
ALTER TABLE attempts ADD COLUMN gpu_share INTEGER NOT NULL DEFAULT 1000000;
-- ``model.GpuUse`` as JSON; NULL where nothing was sampled.
ALTER TABLE attempts ADD COLUMN gpu_use TEXT;
-- Millijoules. Nobody knows them of what was before.
ALTER TABLE totals ADD COLUMN energy_mj INTEGER NOT NULL DEFAULT 0;
