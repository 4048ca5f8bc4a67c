"""``python -m packedbag.cli`` is the ``packedbag`` command."""

from packedbag.cli.app import main

main()
