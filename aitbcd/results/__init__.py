"""Reads result packages: one file, a log, the whole as a zip, or all of it to verify it.

It never writes: packages are built and sealed by ``launcher``. Whoever owns a package can change
anything in it at any time, so every open goes through ``beneath``.
"""
