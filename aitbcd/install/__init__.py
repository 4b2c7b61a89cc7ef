"""``aitbcd install`` and ``aitbcd uninstall``: the units of an installation by pip, pipx or uv."""

from aitbcd.install.command import run

__all__ = ["run"]
