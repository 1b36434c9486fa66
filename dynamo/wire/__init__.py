"""Messages <-> bytes: framing, the shape of every message, and the HELLO that opens a connection. Sans-IO.

`docs/wire.md` specifies what this room implements. Nothing here waits, reads a clock or knows a socket: bytes come in through
`FrameDecoder.feed`, tuples of `dynamo.model.messages` come out, and whatever passed `messages.check` has the shape its reader expects.
"""
