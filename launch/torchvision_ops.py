"""Makes `import torchvision` work beside a CPU build of torch when torchvision's compiled operators cannot load.

The package index carries torchvision only as a CUDA build. Beside CPU torch its `_C.so` fails to load, and the import
then dies on `operator torchvision::nms does not exist`, because torchvision registers shape functions for two
operators that were never declared. Image processors need none of these operators, so declaring their schemas is
enough; calling one still ends in torchvision's own error.

`make setup` copies this file into the environment together with a `.pth` line that calls `install()`, so that every
process of the environment is covered, also those that vLLM and Ray start. Nothing heavy is imported here: the
operators are looked at right after `torchvision.extension`, the module that tries to load them, was first imported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

_EXTENSION = "torchvision.extension"
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[Any] = []
"""The torch library that holds the declarations; they vanish with it, so it lives as long as the process."""


def install() -> None:
    """Watch for the first import of torchvision; a second call changes nothing."""
    if not any(isinstance(finder, _ExtensionFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ExtensionFinder())


def declare_missing_operators(extension: ModuleType) -> None:
    """Declare the schemas torchvision needs, if torch has no GPU support and torchvision's operators did not load.

    Args:
        extension: the imported module `torchvision.extension`.
    """
    import torch

    if torch.version.cuda or torch.version.hip or extension._has_ops():
        return
    missing = [schema for name, schema in _SCHEMAS.items() if not hasattr(torch.ops.torchvision, name)]
    if missing:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in missing:
            library.define(schema)
        _declared.append(library)


class _ExtensionLoader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        declare_missing_operators(module)


class _ExtensionFinder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _EXTENSION:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _ExtensionLoader(spec.loader.name, spec.loader.path)
        return spec
