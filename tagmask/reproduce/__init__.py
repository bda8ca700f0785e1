"""Tables of runs as commands: ``tagmask reproduce TABLE``."""

from tagmask.reproduce.runner import reproduce
from tagmask.reproduce.table import Table, packaged_tables, read_table

__all__ = ["Table", "packaged_tables", "read_table", "reproduce"]
