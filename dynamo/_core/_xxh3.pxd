# XXH3-64 of at most 240 bytes, after its specification (Yann Collet, xxHash, doc/xxhash_spec.md). A key with its bucket
# is rarely longer, and then the hash takes a few nanoseconds where a call of the xxhash package takes fifty. Longer
# inputs take another road through XXH3, a vectorized one; whoever has one calls the package.
#
# All reads are within [data, data + size): each branch reads from both ends, and is taken only if they are long enough.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>

    #define XXH3_PRIME64_1 UINT64_C(0x9E3779B185EBCA87)
    #define XXH3_PRIME64_2 UINT64_C(0xC2B2AE3D27D4EB4F)
    #define XXH3_PRIME64_3 UINT64_C(0x165667B19E3779F9)
    #define XXH3_PRIME_MX1 UINT64_C(0x165667919E3779F9)
    #define XXH3_PRIME_MX2 UINT64_C(0x9FB21C651E98DF25)

    /* The first 136 of its 192 bytes; no short input reaches further. */
    static const uint8_t XXH3_SECRET[136] = {
        0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
        0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
        0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
        0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
        0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
        0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
        0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
        0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
        0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3
    };

    /* The two halves of the 128-bit product, folded by xor. */
    static inline uint64_t xxh3_fold(uint64_t a, uint64_t b) {
    #ifdef __SIZEOF_INT128__
        unsigned __int128 product = (unsigned __int128) a * b;
        return (uint64_t) product ^ (uint64_t) (product >> 64);
    #else
        uint64_t low = (a & 0xFFFFFFFF) * (b & 0xFFFFFFFF);
        uint64_t middle = (a >> 32) * (b & 0xFFFFFFFF) + (low >> 32);
        uint64_t other = (a & 0xFFFFFFFF) * (b >> 32) + (middle & 0xFFFFFFFF);
        uint64_t high = (a >> 32) * (b >> 32) + (middle >> 32) + (other >> 32);
        return ((other << 32) | (low & 0xFFFFFFFF)) ^ high;
    #endif
    }
    """
    const uint64_t XXH3_PRIME64_1, XXH3_PRIME64_2, XXH3_PRIME64_3, XXH3_PRIME_MX1, XXH3_PRIME_MX2
    const uint8_t* XXH3_SECRET
    uint64_t xxh3_fold(uint64_t a, uint64_t b) noexcept nogil


cdef enum:
    XXH3_SHORT_BYTES = 240  # the most that `xxh3_64_short` takes


cdef inline uint32_t little32(const uint8_t* p) noexcept nogil:
    return <uint32_t> p[0] | (<uint32_t> p[1] << 8) | (<uint32_t> p[2] << 16) | (<uint32_t> p[3] << 24)


cdef inline uint64_t little64(const uint8_t* p) noexcept nogil:
    # Compilers turn this into one load, on any alignment.
    return (
        <uint64_t> p[0] | (<uint64_t> p[1] << 8) | (<uint64_t> p[2] << 16) | (<uint64_t> p[3] << 24)
        | (<uint64_t> p[4] << 32) | (<uint64_t> p[5] << 40) | (<uint64_t> p[6] << 48) | (<uint64_t> p[7] << 56)
    )


cdef inline uint64_t swap64(uint64_t x) noexcept nogil:
    x = ((x & <uint64_t> 0x00FF00FF00FF00FF) << 8) | ((x >> 8) & <uint64_t> 0x00FF00FF00FF00FF)
    x = ((x & <uint64_t> 0x0000FFFF0000FFFF) << 16) | ((x >> 16) & <uint64_t> 0x0000FFFF0000FFFF)
    return (x << 32) | (x >> 32)


cdef inline uint64_t avalanche(uint64_t x) noexcept nogil:
    x = (x ^ (x >> 37)) * XXH3_PRIME_MX1
    return x ^ (x >> 32)


cdef inline uint64_t avalanche_xxh64(uint64_t x) noexcept nogil:
    x = (x ^ (x >> 33)) * XXH3_PRIME64_2
    x = (x ^ (x >> 29)) * XXH3_PRIME64_3
    return x ^ (x >> 32)


cdef inline uint64_t mix16(const uint8_t* data, Py_ssize_t secret_at, uint64_t seed) noexcept nogil:
    return xxh3_fold(
        little64(data) ^ (little64(XXH3_SECRET + secret_at) + seed),
        little64(data + 8) ^ (little64(XXH3_SECRET + secret_at + 8) - seed),
    )


cdef inline uint64_t xxh3_upto_16(const uint8_t* data, Py_ssize_t size, uint64_t seed) noexcept nogil:
    cdef uint64_t low, high, x
    if size > 8:
        low = little64(data) ^ ((little64(XXH3_SECRET + 24) ^ little64(XXH3_SECRET + 32)) + seed)
        high = little64(data + size - 8) ^ ((little64(XXH3_SECRET + 40) ^ little64(XXH3_SECRET + 48)) - seed)
        return avalanche(<uint64_t> size + swap64(low) + high + xxh3_fold(low, high))
    if size >= 4:
        seed ^= swap64(seed & <uint64_t> 0xFFFFFFFF)
        x = <uint64_t> little32(data + size - 4) + (<uint64_t> little32(data) << 32)
        x ^= (little64(XXH3_SECRET + 8) ^ little64(XXH3_SECRET + 16)) - seed
        x ^= ((x << 49) | (x >> 15)) ^ ((x << 24) | (x >> 40))
        x *= XXH3_PRIME_MX2
        x = (x ^ ((x >> 35) + <uint64_t> size)) * XXH3_PRIME_MX2
        return x ^ (x >> 28)
    if size > 0:
        x = (<uint64_t> data[0] << 16) | (<uint64_t> data[size >> 1] << 24) | data[size - 1] | (<uint64_t> size << 8)
        return avalanche_xxh64(x ^ (<uint64_t> (little32(XXH3_SECRET) ^ little32(XXH3_SECRET + 4)) + seed))
    return avalanche_xxh64(seed ^ little64(XXH3_SECRET + 56) ^ little64(XXH3_SECRET + 64))


cdef inline uint64_t xxh3_64_short(const uint8_t* data, Py_ssize_t size, uint64_t seed) noexcept nogil:
    # The hash of 0 to 240 bytes.
    cdef uint64_t x, end
    cdef Py_ssize_t i
    if size <= 16:
        return xxh3_upto_16(data, size, seed)
    x = <uint64_t> size * XXH3_PRIME64_1
    if size <= 128:
        if size > 32:
            if size > 64:
                if size > 96:
                    x += mix16(data + 48, 96, seed) + mix16(data + size - 64, 112, seed)
                x += mix16(data + 32, 64, seed) + mix16(data + size - 48, 80, seed)
            x += mix16(data + 16, 32, seed) + mix16(data + size - 32, 48, seed)
        return avalanche(x + mix16(data, 0, seed) + mix16(data + size - 16, 16, seed))
    for i in range(8):
        x += mix16(data + 16 * i, 16 * i, seed)
    x = avalanche(x)
    end = mix16(data + size - 16, 119, seed)
    for i in range(8, size // 16):
        x += mix16(data + 16 * i, 16 * (i - 8) + 3, seed)
    return avalanche(x + end)
