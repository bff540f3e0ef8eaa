"""Entry points: each file is one command, run as `python -m launch.<name>` from the repository's root."""

import os

from launch.places import provide_caches, provide_temporary

# Before any import that looks for its cache.
provide_temporary(os.environ)
provide_caches(os.environ)
