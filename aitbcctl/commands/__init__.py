"""One module a verb; each has ``command``, which returns the exit code."""
