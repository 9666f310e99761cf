"""``python -m gatokit`` is the ``gatokit`` command."""

import sys

from gatokit.cli.main import main

sys.exit(main())
