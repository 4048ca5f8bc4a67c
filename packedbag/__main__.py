"""``python -m packedbag`` is the ``packedbag`` command, as torchrun starts it."""

from packedbag.cli.app import main

if __name__ == "__main__":
    main()
