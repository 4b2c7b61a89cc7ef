"""All that is kept about jobs, in one SQLite file."""

from aitbcd.store.changes import Batch, Move, Note, Pieces, digest_of_command
from aitbcd.store.listing import JobFilter, JobPage, Sort
from aitbcd.store.queue import QueuePage
from aitbcd.store.stats import By, Group, Stats, Totals, Wanted
from aitbcd.store.store import SharePage, Store

__all__ = [
    "Batch", "By", "Group", "JobFilter", "JobPage", "Move", "Note", "Pieces", "QueuePage",
    "SharePage", "Sort", "Stats", "Store", "Totals", "Wanted", "digest_of_command",
]  # fmt: skip
