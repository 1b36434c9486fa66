"""Fuzzes every decoder of bytes that came from outside, with atheris (libFuzzer); compiled and pure kernels have to agree on each input.

    python ci/fuzz.py record --seconds 600            # a crash is kept in the directory of --artifacts and fails the run
    python ci/fuzz.py record crash-0123abcd           # one input again; needs no atheris
    python ci/fuzz.py --list

A target is a function of bytes that raises where something is wrong: another error than the typed one, twins that differ, a value that does not
survive its own encoding. It begins from a corpus made here, of the golden frames and records. `tests/test_fuzz.py` runs each for a few seconds.
Needs `pip install -e '.[fuzz]'`; the compiled twins are compared where they were built.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
INPUT_BYTES_MAX = 4096
SECRET = bytes(range(32))
KEY = b"default\0key"
FRAME_LIMITS = (INPUT_BYTES_MAX, 64, 256)  # bytes of a frame, elements of an array, of all arrays: small, so that they are met


class Disagreement(AssertionError):
    """The twins differ, or a value does not come back."""


class Twins:
    """Kernels by name, compiled and pure; a call runs both and compares."""

    def __init__(self) -> None:
        self.compared: list[str] = []
        self._twins = {name: self._load(name) for name in ("frame", "record", "row")}

    def _load(self, name: str) -> tuple[ModuleType, ModuleType]:
        pure = import_module(f"dynamo._core._{name}_py")
        try:
            compiled = import_module(f"dynamo._core._{name}_c")
        except ModuleNotFoundError:
            return pure, pure
        self.compared.append(name)
        return compiled, pure

    def __call__(self, kernel: str, function: str, *arguments: Any) -> Any:
        """What both return. Raises what both raise, if it is a typed error; Disagreement otherwise."""
        outcomes = [_outcome(getattr(twin, function), arguments) for twin in self._twins[kernel]]
        (value, error), (other, other_error) = outcomes
        if type(error) is not type(other_error) or repr(value) != repr(other):  # by repr: a NaN equals itself there
            raise Disagreement(f"{kernel}.{function}{arguments!r}: compiled {outcomes[0]!r}, pure {outcomes[1]!r}")
        if error is not None:
            raise error
        return value


def _outcome(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Exception | None]:
    from dynamo.errors import DynamoError

    try:
        return function(*arguments), None
    except DynamoError as error:
        return None, error


def expect(true: bool, text: str) -> None:
    """Raises Disagreement."""
    if not true:
        raise Disagreement(text)


# --- targets: they are given the twins and the bytes -----------------------------------------------------------------------------------------


def frame(twins: Twins, data: bytes) -> None:
    """Frames and documents; a stream cut in two gives what it gives whole."""
    from dynamo.errors import ProtocolError
    from dynamo.wire.documents import decode_document
    from dynamo.wire.frames import FrameDecoder

    try:
        messages, used, needed = twins("frame", "decode", data, *FRAME_LIMITS)
        expect(0 <= used <= len(data) and needed >= 4, "sizes")
        for message in messages:
            expect(twins("frame", "decode", twins("frame", "encode", message), *FRAME_LIMITS)[0] == [message] or _has_nan(message), "round trip")
    except ProtocolError:
        messages = None
    body = len(data).to_bytes(4, "big") + data  # the whole input as one body, which mutations of the length do not spoil
    for stream in (data, body):
        outcomes = []
        for cut in (0, len(stream) // 3, len(stream) - 1):
            decoder = FrameDecoder(INPUT_BYTES_MAX)
            try:
                outcomes.append(repr(decoder.feed(stream[:cut]) + decoder.feed(stream[cut:])))
            except ProtocolError:
                outcomes.append("error")
        expect(len(set(outcomes)) == 1, f"pieces: {outcomes}")
    for call in (lambda: twins("frame", "decode", body, *FRAME_LIMITS), lambda: twins("frame", "unpack", data, 256), lambda: decode_document(data)):
        with suppress(ProtocolError):
            call()


def hello(twins: Twins, data: bytes) -> None:
    """The first message of a connection, in either direction, and every message after it under every role."""
    from dynamo.errors import ConfigError, DynamoError, ProtocolError
    from dynamo.model import messages as m
    from dynamo.net.handshake import Handshake
    from dynamo.wire.hello import Hello, check_hello, check_reply, message_of
    from dynamo.wire.messages import check, check_answer

    mine = Hello(cluster_id=b"c" * 16, partitions=256, tree_shape=1, role=m.ROLE_PEER, node_id=b"n" * 16, incarnation=1, boot_nonce=b"b" * 16)
    handshake = Handshake(mine, SECRET, lambda node: (0, 0), lambda node: None)
    try:
        messages = twins("frame", "decode", len(data).to_bytes(4, "big") + data, INPUT_BYTES_MAX, 4096, 131_072)[0]
    except ProtocolError:
        return
    for message in messages:
        with suppress(ProtocolError):
            greeting = check_hello(message)
            expect(message_of(greeting)[3:] == message[3 : 3 + len(greeting)], "a greeting does not come back")
        with suppress(ProtocolError, ConfigError):
            expect(handshake.accept(message).role != m.ROLE_PEER or message[7] == mine.cluster_id, "a stranger was let in")
        with suppress(DynamoError):  # or whatever an ERROR says
            check_reply(message)
        for role in (m.ROLE_CLIENT, m.ROLE_PEER, m.ROLE_JOIN):
            for judge in (check, check_answer) if role != m.ROLE_PEER else (check,):
                with suppress(ProtocolError):
                    judge(message, role)


def token(twins: Twins, data: bytes) -> None:
    """Tokens as they come, and with a MAC that is right: then what is in them has to be canonical."""
    from dynamo.errors import InvalidContext
    from dynamo.replication import tokens

    for sealed in (data, data + tokens._mac(SECRET, KEY, data)):
        for kind in (1, 2):
            try:
                time, context = tokens.unseal(SECRET, KEY, kind, sealed)
            except InvalidContext:
                continue
            twins("record", "context_verify", context)
            expect(tokens.seal(SECRET, KEY, kind, time, context) == sealed, "a token does not come back")
            expect(twins("record", "context_union", context, context) == context, "a union with itself")
    context, rest = data[: len(data) // 48 * 24], data[len(data) // 48 * 24 :]
    try:
        for each in (context, rest):
            twins("record", "context_verify", each)
    except InvalidContext:
        return
    union = twins("record", "context_union", context, rest)
    twins("record", "context_verify", union)
    expect(union == twins("record", "context_union", rest, context), "a union that depends on its order")
    expect(twins("record", "context_covers", union, context) and twins("record", "context_covers", union, rest), "a union that lacks something")
    actor = int.from_bytes(data[:8], "big")
    twins("record", "context_highest", union, actor)
    twins("record", "context_contains", union, actor, 5)


def record(twins: Twins, data: bytes) -> None:
    """Two records (the first two bytes say how long the first is): as they come, and with checksums that are right."""
    from dynamo.errors import CorruptRecord, DynamoError

    cut = 2 + int.from_bytes(data[:2], "big")
    pieces = data[2:cut], data[cut:]
    for pair in (pieces, tuple(map(_resealed, pieces))):
        sound = []
        for each in pair:
            for function in ("check", "versions", "version_count", "single_value", "visible", "context", "duplicate_dots"):
                with suppress(CorruptRecord):
                    twins("record", function, each)
            with suppress(CorruptRecord):
                twins("record", "verify", each)
                sound.append(each)
        for function, arguments in (  # also of records nobody has verified: an error, never a crash
            ("merge", pair),
            ("compare", pair),
            ("put", (pair[0], b"", 7, 1 << 40, 1 << 40, 1, bytes(16), b"v", False)),
            ("put_last_write_wins", (pair[0], 7, 1 << 40, 1, bytes(16), b"v", False)),
            ("digest", (b"default\0key", pair[0], 5)),
            ("token_context", (pair[0], b"", 7, 1 << 40)),
            ("find_operation", (pair[0], pair[1][:16].ljust(16, b"\0"))),
        ):
            with suppress(DynamoError):
                twins("record", function, *arguments)
        if len(sound) == 2:
            _lattice(twins, *sound)


def _resealed(record: bytes) -> bytes:
    """With the checksum that belongs to it."""
    import xxhash

    return record[:-8] + xxhash.xxh3_64_digest(record[:-8]) if len(record) >= 20 else record


def _lattice(twins: Twins, a: bytes, b: bytes) -> None:
    """What merging sound records promises."""
    from dynamo.errors import CorruptRecord

    try:
        merged = twins("record", "merge", a, b)
    except CorruptRecord:
        return  # of different kinds
    twins("record", "verify", merged)
    expect(twins("record", "merge", b, a) == merged, "merge depends on its order")
    expect(twins("record", "merge", a, a) == a and twins("record", "merge", merged, merged) == merged, "merge with itself")
    expect(bool(merged) == bool(a or b), "a merge with something is nothing")


def row(twins: Twins, data: bytes) -> None:
    """Rows as they lie on the disk: as they come, and with checksums that are right."""
    import xxhash

    from dynamo.errors import CorruptRecord
    from dynamo.model.key import row_key

    end = 36 + int.from_bytes(data[34:36], "big")  # of the header
    for key in (row_key(3, b"default", b"alice", bytes(32)), row_key(0xFFFF, b"default", b"k" * 600, bytes(32))):
        resealed = data[:end] + xxhash.xxh3_64_digest(key + data[:end]) + _resealed(data[end + 8 :])
        for each in (data, resealed):
            for verify in (True, False):
                try:
                    decoded = twins("row", "decode", key, each, verify)
                except CorruptRecord:
                    continue
                expect(twins("row", "encode", key, decoded) == each, "a row does not come back")
                if verify:
                    twins("record", "check", decoded[5])


TARGETS: dict[str, Callable[[Twins, bytes], None]] = {"frame": frame, "hello": hello, "token": token, "record": record, "row": row}


def _has_nan(value: Any) -> bool:
    return value != value if not isinstance(value, tuple) else any(map(_has_nan, value))


# --- where they begin ------------------------------------------------------------------------------------------------------------------------


def corpus(target: str) -> Iterator[bytes]:
    """Sound inputs of a target."""
    from dynamo.replication import tokens

    frames = [bytes.fromhex(case["frame"]) for case in json.loads((GOLDEN / "frames_v1.json").read_text())["frames"].values()]
    if target == "frame":
        yield from frames
        yield b"".join(frames[:4])
        yield bytes.fromhex("82a16101a16202")
    elif target == "hello":
        yield from (each[4:] for each in frames)
    elif target == "token":
        contexts = [b"", *(b"".join(n.to_bytes(8, "big") for n in ranges) for ranges in ((1, 1, 5), (1, 1, 5, 1, 9, 9, 2, 1, 1 << 60)))]
        for context in contexts:
            sealed = tokens.seal(SECRET, KEY, 1, 0, context)
            yield from (sealed, sealed[: -tokens.MAC_BYTES], context + context, tokens.seal(SECRET, KEY, 2, 1 << 50, context))
    elif target == "record":
        records = [*_golden("record_v1.hex"), *_records(), b""]
        yield from (len(one).to_bytes(2, "big") + one + other for one in records for other in records)
    else:
        yield from _golden("row_v2.hex")


def _golden(name: str) -> list[bytes]:
    """The values of a file of lines `name hexadecimal`."""
    lines = (GOLDEN / name).read_text().splitlines()
    return [bytes.fromhex(line.split()[1]) for line in lines if not line.startswith("#")]


def _records() -> list[bytes]:
    """Records of both kinds, one the successor of another."""
    from dynamo._core import _record_py as kernel

    one = kernel.put(b"", b"", 5, 1, 1, 1 << 50, b"o" * 16, b"one", False)
    two = kernel.put(one, b"", 5, 2, 1, 2 << 50, b"p" * 16, b"two", False)
    three = kernel.put(two, kernel.context(one), 6, 1, 1, 3 << 50, b"q" * 16, b"", True)
    last = kernel.put_last_write_wins(b"", 5, 1, 1 << 50, b"o" * 16, b"last", False)
    return [one, two, three, last]


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz a decoder.")
    parser.add_argument("target", nargs="?", choices=TARGETS)
    parser.add_argument("inputs", nargs="*", type=Path, help="run these files once, instead of fuzzing")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of libFuzzer; 0 takes a random one")
    parser.add_argument("--artifacts", type=Path, default=Path.cwd(), help="where an input that fails is kept")
    parser.add_argument("--corpus", type=Path, help="a directory of inputs to begin from and to add to; by default a temporary one")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    if options.list or options.target is None:
        print(*TARGETS)
        return 0
    if options.inputs:
        twins = Twins()
        for file in options.inputs:
            TARGETS[options.target](twins, file.read_bytes())
        return 0
    return _fuzz(options)


def _fuzz(options: argparse.Namespace) -> int:
    try:
        import atheris
    except ModuleNotFoundError:
        print("atheris is not installed: pip install -e '.[fuzz]'", file=sys.stderr)
        return 2
    target = TARGETS[options.target]
    with atheris.instrument_imports(include=["dynamo"]):
        twins = Twins()
        for seed in corpus(options.target):
            target(twins, seed)  # imports the rest, instrumented
    print(f"target {options.target}, compiled and pure compared: {', '.join(twins.compared) or 'none is built'}", flush=True)
    with nullcontext(options.corpus) if options.corpus else tempfile.TemporaryDirectory() as directory:
        for number, seed in enumerate(corpus(options.target)):
            (Path(directory) / f"seed-{number}").write_bytes(seed)
        flags = [f"-max_total_time={options.seconds}", f"-max_len={INPUT_BYTES_MAX}", "-timeout=10", "-rss_limit_mb=2048"]
        flags += [f"-artifact_prefix={options.artifacts}/", f"-seed={options.seed}", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], *flags, str(directory)], lambda data: target(twins, data))
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
