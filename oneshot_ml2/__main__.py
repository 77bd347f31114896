"""``python -m oneshot_ml2``, which is also how ``torchrun`` starts a command."""

from __future__ import annotations

import sys

from oneshot_ml2.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
