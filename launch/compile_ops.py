"""Compiles, once, the operator that DeepSpeed otherwise builds inside the first learner to start on a CPU."""

from __future__ import annotations

import os
from pathlib import Path

from dig_rl.extension_lock import remove_stale_locks


def main() -> None:
    """Build DeepSpeed's shared-memory collectives into `TORCH_EXTENSIONS_DIR`."""
    for lock in remove_stale_locks(Path(os.environ["TORCH_EXTENSIONS_DIR"])):
        print(f"removed {lock}: the process that held it is gone")

    import torchvision  # noqa: F401 - proves that image processing can be imported
    from deepspeed.comm.torch import build_shm_op

    build_shm_op()


if __name__ == "__main__":
    main()
