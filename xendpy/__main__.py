"""`python3 -m xendpy` is `xend`."""

import sys

from xendpy.cli.xend import main

sys.exit(main())
