"""`python -m fcmae` is the console command."""

import sys

from fcmae.cli import main

if __name__ == "__main__":
    sys.exit(main())
