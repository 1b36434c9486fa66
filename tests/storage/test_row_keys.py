"""Row keys of long keys: no two keys share one, also if whoever chooses the keys knows how hashes work."""

from __future__ import annotations

import struct
from pathlib import Path

import xxhash

import dynamo
from dynamo.model.key import full_key, is_hashed, row_key

# The first 192 bytes of XXH3's public secret: what a collision is made of.
_XXH3_SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364ea"
    "c5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)


def colliding(number: int) -> bytes:
    """One of a family of keys of the bucket `default` that all have one XXH3 hash: the low half of a lane cancels the secret, the high halves sum to
    a constant."""
    full = bytearray(full_key(b"default", b"u" * 1000))
    for stripe, high in ((8, 1000 + number), (9, 100_000 - number)):
        (low,) = struct.unpack_from("<I", _XXH3_SECRET, 8 * stripe)
        struct.pack_into("<II", full, 64 * stripe, low, high)
    return bytes(full[len(b"default\0") :])


def test_keys_that_collide_in_an_unkeyed_hash_have_rows_of_their_own(tmp_path: Path) -> None:
    keys = [colliding(number) for number in range(300)]
    assert len({xxhash.xxh3_128_digest(full_key(b"default", key)) for key in keys}) == 1, "the family is one no longer"
    with dynamo.open(tmp_path / "data", durability="relaxed") as store:
        store.set_many({key: b"%d" % number for number, key in enumerate(keys)})
        found = store.get_many(keys)
        assert [found[key].values for key in keys] == [(b"%d" % number,) for number in range(len(keys))]


def test_the_hash_depends_on_every_byte_and_on_the_secret() -> None:
    key = b"k" * 600
    whole = row_key(1, b"b", key, bytes(32))
    assert is_hashed(whole) and len(whole) == 511
    others = [row_key(1, b"b", key[:at] + b"x" + key[at + 1 :], bytes(32)) for at in range(len(key))]
    assert len({whole, row_key(1, b"b", key, b"s" * 32), *others}) == len(key) + 2
