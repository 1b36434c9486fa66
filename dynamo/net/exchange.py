"""One request to another node, outside the reactor: for starting and joining, where a stream and a time-out are all that is needed."""

from __future__ import annotations

import trio

from dynamo.config import split_address
from dynamo.errors import ConnectionFailed, ProtocolError
from dynamo.model.messages import ERROR, Message
from dynamo.wire.frames import ANSWER_ELEMENTS_MAX, FrameDecoder, encode
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
            host, port = split_address(address)
            async with await trio.open_tcp_stream(host, port) as stream:
                return await _converse(stream, greeting, request)
    except (OSError, trio.BrokenResourceError) as error:
        raise ConnectionFailed(f"{address}: {error}") from None
    except trio.TooSlowError:
        raise ConnectionFailed(f"{address}: no answer within {timeout_s:g} s") from None


async def _converse(stream: trio.SocketStream, greeting: Hello, request: Message) -> tuple[Hello, Message]:
    decoder = FrameDecoder(elements_max=ANSWER_ELEMENTS_MAX)
    await stream.send_all(encode(message_of(greeting)))
    try:
        theirs, _, _ = check_reply(await _next(stream, decoder))
    except ProtocolError as error:
        raise ProtocolError(f"{error}; is there a dynamo node at that address?") from None
    await stream.send_all(encode(request))
    reply = await _next(stream, decoder)
    check_answer(reply, greeting.role)
    if reply[0] == ERROR:
        raise refusal(reply)
    return theirs, reply


async def _next(stream: trio.SocketStream, decoder: FrameDecoder) -> Message:
    """The next message; one question, one answer, so there is never a second."""
    while True:
        data = await stream.receive_some(RECEIVE_BYTES)
        if not data:
            raise ConnectionFailed("the node closed the connection")
        messages = decoder.feed(bytes(data))
        if messages:
            return messages[0]
