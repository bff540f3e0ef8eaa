"""Entry points: each file is one command, run as `python -m launch.<name>` from the repository's root."""

import os

from launch.writable_home import provide_caches

provide_caches(os.environ)  # before any import that looks for its cache
