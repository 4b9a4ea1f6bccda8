"""`python -m resnetkit` runs the command line."""

import sys

from resnetkit.cli import main

sys.exit(main())
