"""aitbcd: the job queue of a shared GPU machine. Holds the version only, so that importing any
part of the package (a supervisor above all) loads nothing else."""

__version__ = "0.1.0"
