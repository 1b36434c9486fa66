"""dynamo: a highly available, always-writeable key-value store after Amazon's Dynamo (DeCandia et al., SOSP 2007).

The public names live in the table below and are imported when first used (PEP 562), so that `import dynamo` stays cheap
and the blocking client never imports Trio. To add a public name, add one line to the table.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_MODULES = {
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
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    """Import a public name on first use and keep it."""
    module_name = _MODULES.get(name)
    if module_name is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(module_name), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
