"""dynamo: a highly available, always-writeable key-value store after Amazon's Dynamo (DeCandia et al., SOSP 2007).

The public names live in the table below and are imported when first used (PEP 562), so that `import dynamo` stays cheap
and the blocking client never imports Trio. Type checkers see the same names as plain imports.

To add a public name, add one line to the table and one to the imports; a test compares the two.
"""

from __future__ import annotations

TYPE_CHECKING = False  # checkers take it for True; importing it from `typing` would be most of the cost of `import dynamo`

__version__ = "0.1.0"
__distribution__ = "dynamo-kv"  # others install a `dynamo`, too: `dynamo_kv` knows ours by this line, before it imports anything

_MODULES = {
    "AsyncClient": "dynamo.client.aio",
    "Client": "dynamo.client",
    "open": "dynamo.store",
    "Store": "dynamo.store",
    "Node": "dynamo.node",
    "NodeConfig": "dynamo.config",
    "Context": "dynamo.api",
    "Result": "dynamo.api",
    "Sibling": "dynamo.api",
    "Dot": "dynamo.api",
    "MISSING": "dynamo.api",
    "DELETE": "dynamo.api",
    "DynamoError": "dynamo.errors",
    "Unavailable": "dynamo.errors",
    "Timeout": "dynamo.errors",
    "InvalidContext": "dynamo.errors",
    "InvalidKey": "dynamo.errors",
    "KeyTooLong": "dynamo.errors",
    "ValueTooLarge": "dynamo.errors",
    "TooManySiblings": "dynamo.errors",
    "CorruptRecord": "dynamo.errors",
    "StorageFull": "dynamo.errors",
    "StorageFailed": "dynamo.errors",
    "InvalidRequest": "dynamo.errors",
    "ConnectionFailed": "dynamo.errors",
    "ConfigError": "dynamo.errors",
    "ConflictError": "dynamo.errors",
    "ProtocolError": "dynamo.errors",
    "Reentered": "dynamo.errors",
}

if TYPE_CHECKING:
    from dynamo.api import DELETE as DELETE
    from dynamo.api import MISSING as MISSING
    from dynamo.api import Context as Context
    from dynamo.api import Dot as Dot
    from dynamo.api import Result as Result
    from dynamo.api import Sibling as Sibling
    from dynamo.client import Client as Client
    from dynamo.client.aio import AsyncClient as AsyncClient
    from dynamo.config import NodeConfig as NodeConfig
    from dynamo.errors import ConfigError as ConfigError
    from dynamo.errors import ConflictError as ConflictError
    from dynamo.errors import ConnectionFailed as ConnectionFailed
    from dynamo.errors import CorruptRecord as CorruptRecord
    from dynamo.errors import DynamoError as DynamoError
    from dynamo.errors import InvalidContext as InvalidContext
    from dynamo.errors import InvalidKey as InvalidKey
    from dynamo.errors import InvalidRequest as InvalidRequest
    from dynamo.errors import KeyTooLong as KeyTooLong
    from dynamo.errors import ProtocolError as ProtocolError
    from dynamo.errors import Reentered as Reentered
    from dynamo.errors import StorageFailed as StorageFailed
    from dynamo.errors import StorageFull as StorageFull
    from dynamo.errors import Timeout as Timeout
    from dynamo.errors import TooManySiblings as TooManySiblings
    from dynamo.errors import Unavailable as Unavailable
    from dynamo.errors import ValueTooLarge as ValueTooLarge
    from dynamo.node import Node as Node
    from dynamo.store import Store as Store
    from dynamo.store import open as open
else:  # out of sight of checkers, which then know exactly the names above
    __all__ = ["__version__", *(name for name in _MODULES if name != "open")]  # `import *` must not hide Python's own

    def __getattr__(name: str) -> object:
        """Import a public name on first use and keep it."""
        module_name = _MODULES.get(name)
        if module_name is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(module_name), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_MODULES})
