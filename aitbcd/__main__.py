"""``python -m aitbcd`` is ``aitbcd``."""

from aitbcd.daemon import main

main()
