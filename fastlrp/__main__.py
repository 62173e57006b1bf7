"""``python -m fastlrp``: the command line, see :mod:`fastlrp.cli`."""

from fastlrp.cli import main

if __name__ == "__main__":
    main()
