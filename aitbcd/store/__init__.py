"""All that is kept about jobs, in one SQLite file."""

from aitbcd.store.changes import Batch, Move, Pieces, digest_of_command
from aitbcd.store.listing import JobFilter, JobPage, Sort
from aitbcd.store.queue import QueuePage
from aitbcd.store.store import SharePage, Store

__all__ = [
    "Batch", "JobFilter", "JobPage", "Move", "Pieces", "QueuePage", "SharePage", "Sort", "Store",
    "digest_of_command",
]  # fmt: skip
