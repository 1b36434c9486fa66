"""One request to another node, outside the reactor: for starting and joining, where a stream and a time-out are all that is needed."""

from __future__ import annotations

import trio

from dynamo.dialling import race, trio_waits
from dynamo.errors import ConnectionFailed, DynamoError, ProtocolError, Timeout
from dynamo.model.messages import ERROR, Message
from dynamo.wire.frames import FrameDecoder, encode
from dynamo.wire.hello import Hello, check_reply, message_of, refusal
from dynamo.wire.messages import check_answer

RECEIVE_BYTES = 65_536


async def call(address: str, greeting: Hello, request: Message, timeout_s: float) -> tuple[Hello, Message]:
    """Greet the node at `address` and ask it one thing: (its greeting, its reply).

    Raises ConnectionFailed if it cannot be reached or does not answer in time, ProtocolError if it speaks another protocol, or whatever it
    answers with an ERROR.
    """
    try:
        with trio.fail_after(timeout_s):
            deadline = trio.current_time() + timeout_s
            won = await race.connect_async(address, _Introduction(greeting), trio_waits, deadline)
            assert won.said is not None
            async with trio.SocketStream(trio.socket.from_stdlib_socket(won.sock)) as stream:
                await stream.send_all(encode(request))
                reply = await _next(stream, won.decoder)
    except Timeout as error:
        raise ConnectionFailed(str(error)) from None
    except (OSError, trio.BrokenResourceError) as error:
        if isinstance(error, DynamoError):
            raise
        raise ConnectionFailed(f"{address}: {error}") from None
    except trio.TooSlowError:
        raise ConnectionFailed(f"{address}: no answer within {timeout_s:g} s") from None
    check_answer(reply, greeting.role)
    if reply[0] == ERROR:
        raise refusal(reply)
    return won.said, reply


class _Introduction:
    """The greeting of a node that is no member yet, or asks as a client does, for `dialling.race`."""

    def __init__(self, greeting: Hello) -> None:
        self._greeting = greeting

    def hello(self) -> bytes:
        return encode(message_of(self._greeting))

    def accept(self, answer: Message) -> Hello:
        """The greeting of the node. Raises what it refuses us with, or ProtocolError."""
        return check_reply(answer)[0]

    def explain(self, error: DynamoError) -> DynamoError:
        """The error of a connection that ended while greeting."""
        return ProtocolError(f"{error}; is there a dynamo node at that address?") if isinstance(error, ProtocolError) else error


async def _next(stream: trio.SocketStream, decoder: FrameDecoder) -> Message:
    """The next message; one question, one answer, so there is never a second."""
    while True:
        data = await stream.receive_some(RECEIVE_BYTES)
        if not data:
            raise ConnectionFailed("the node closed the connection")
        messages = decoder.feed(bytes(data))
        if messages:
            return messages[0]
