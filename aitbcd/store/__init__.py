"""All that is kept about jobs, in one SQLite file."""

from aitbcd.store.changes import Batch, Move, Pieces, digest_of_command
from aitbcd.store.store import JobFilter, Store

__all__ = ["Batch", "JobFilter", "Move", "Pieces", "Store", "digest_of_command"]
