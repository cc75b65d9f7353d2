"""``python -m dsv2_compile`` is ``dsv2-compile``."""

import sys

from dsv2_compile.cli.main import main

sys.exit(main())
