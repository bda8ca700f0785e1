"""``python -m tagmask`` works like ``tagmask``."""

from tagmask.cli import main

main()
