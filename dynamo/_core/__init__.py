"""Kernels of the hot path. Each has a pure source, `_NAME_py.py`, and where it pays a compiled twin, `_NAME_c.pyx`.

    from dynamo._core import CORE, record, ring

Twins have the same functions, results and error classes. This is the only place that picks: the compiled ones where
they can be imported, all of them or none; `DYNAMO_PURE=1` in the environment forces the pure ones. `CORE` says which
are in use, "compiled" or "pure". A compiled kernel that is there but does not load (damaged, or linked against what is
missing) is an error: falling back in silence would hide a slow node.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

__all__ = ["COMPILED", "CORE", "frame", "histogram", "merkle", "record", "ring", "row", "shape"]

COMPILED = ("record", "row", "ring", "frame", "merkle", "histogram", "shape")  # kernels with a compiled twin; setup.py builds the same list


def _load_compiled() -> dict[str, object]:
    """The compiled kernels by name, or {} where they were not built or are not wanted."""
    if os.environ.get("DYNAMO_PURE") == "1":
        return {}
    modules: dict[str, object] = {}
    for name in COMPILED:
        path = f"{__name__}._{name}_c"
        try:
            modules[name] = import_module(path)
        except ModuleNotFoundError as error:
            if error.name != path:
                raise
            return {}
    return modules


_compiled = _load_compiled()
CORE = "compiled" if _compiled else "pure"

if TYPE_CHECKING:
    from dynamo._core import _frame_py as frame
    from dynamo._core import _histogram_py as histogram
    from dynamo._core import _merkle_py as merkle
    from dynamo._core import _record_py as record
    from dynamo._core import _ring_py as ring
    from dynamo._core import _row_py as row
    from dynamo._core import _shape_py as shape
else:
    frame = _compiled.get("frame") or import_module(f"{__name__}._frame_py")
    histogram = _compiled.get("histogram") or import_module(f"{__name__}._histogram_py")
    merkle = _compiled.get("merkle") or import_module(f"{__name__}._merkle_py")
    record = _compiled.get("record") or import_module(f"{__name__}._record_py")
    ring = _compiled.get("ring") or import_module(f"{__name__}._ring_py")
    row = _compiled.get("row") or import_module(f"{__name__}._row_py")
    shape = _compiled.get("shape") or import_module(f"{__name__}._shape_py")
