"""The context: what a read gives a client, to be handed back with the write that replaces what it has seen.

It is the paper's `context` argument of get and put (section 4). To the client it is opaque: the server sealed it for one key of one
cluster and refuses it anywhere else. Its text form is base64 for URLs without padding, so that it fits into a shell variable, a header
or a form field.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from dynamo.api import urlsafe
from dynamo.errors import InvalidContext


class Dot(NamedTuple):
    """The name of one write: the `counter`-th of `actor` (both unsigned 64-bit). No two writes ever share one."""

    actor: int
    counter: int

    def __str__(self) -> str:
        return f"{self.actor:016x}:{self.counter}"


class Context:
    """An immutable token. Equality and hash look at the token alone; `dot` and `unseen_siblings` only tell about the put that returned
    it."""

    __slots__ = ("dot", "token", "unseen_siblings")

    token: bytes
    dot: Dot | None
    """The dot this put minted; None for the context of a read."""
    unseen_siblings: int
    """Of a put: how many siblings it left standing that its client had not seen; a read shows them. Of a read: how many versions it could not show,
    for there is more of the key than an answer holds; this context does not cover them. Put what you made of those shown, and read on."""

    def __init__(self, token: bytes, *, dot: Dot | None = None, unseen_siblings: int = 0) -> None:
        object.__setattr__(self, "token", bytes(token))
        object.__setattr__(self, "dot", dot)
        object.__setattr__(self, "unseen_siblings", unseen_siblings)

    @classmethod
    def parse(cls, text: str | bytes) -> Context:
        """The inverse of both `str(context)` and `bytes(context)`. Raises InvalidContext for text that is no token, the empty one included."""
        if isinstance(text, bytes | bytearray | memoryview):
            return cls(_not_empty(bytes(text)))
        if not isinstance(text, str):
            raise TypeError(f"a context is a Context, str or bytes, not {type(text).__name__}")
        try:
            return cls(_not_empty(urlsafe.decode(text)))
        except InvalidContext:
            raise
        except ValueError:
            raise InvalidContext("the context is no url-safe base64, or was altered on its way; pass it exactly as it was given") from None

    def __bytes__(self) -> bytes:
        return self.token

    def __str__(self) -> str:
        return urlsafe.encode(self.token)

    def __repr__(self) -> str:
        return f"Context.parse({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return self.token == other.token if isinstance(other, Context) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.token)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Context is immutable; cannot set {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Context is immutable; cannot delete {name}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.token, self.dot, self.unseen_siblings)  # to cross process boundaries and be copied


def token_bytes(context: Context | str | bytes | None) -> bytes | None:
    """What `context=` of a verb stands for on the wire. Raises InvalidContext or TypeError."""
    if context is None or isinstance(context, Context):
        return None if context is None else _not_empty(context.token)
    return Context.parse(context).token


def _not_empty(token: bytes) -> bytes:
    """The token. An empty one is a variable that nobody set: to take it for None would add a sibling where one was to be replaced."""
    if not token:
        raise InvalidContext("the context is empty; pass the one that a read of this key returned, or leave it out to add a sibling")
    return token


def _restore(token: bytes, dot: Dot | None, unseen_siblings: int) -> Context:
    return Context(token, dot=dot, unseen_siblings=unseen_siblings)
