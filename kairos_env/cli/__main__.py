"""``python -m kairos_env.cli``: the same as the ``kairos`` command."""

import sys

from kairos_env.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
