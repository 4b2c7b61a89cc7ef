-- The most memory that all of an attempt had at one time, bytes; NULL where it had no cgroup that
-- counts it, and for what was before.
ALTER TABLE attempts ADD COLUMN memory_peak INTEGER;
