"""``python -m fastlrp.tune``."""

import sys

from fastlrp.tune.command import main

if __name__ == "__main__":
    sys.exit(main())
