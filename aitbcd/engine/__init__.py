"""The engine: decides what runs and records what becomes of it."""

from aitbcd.engine.engine import Engine

__all__ = ["Engine"]
