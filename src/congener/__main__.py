"""``python -m congener`` is the ``congener`` command."""

from congener.cli import main

if __name__ == "__main__":
    main()
