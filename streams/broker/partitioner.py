"""Which partition a key belongs to: the hash that every Kafka client calls murmur2."""

from __future__ import annotations

_MASK = 0xFFFFFFFF


def partition_of(key: str, partitions: int) -> int:
    """The partition of a key as every Kafka client that uses murmur2 finds it."""
    return (_murmur2(key.encode()) & 0x7FFFFFFF) % partitions


def _murmur2(data: bytes) -> int:
    """Kafka's hash of a key, as its Java client has it.

    It is murmur2: kafka.apache.org documents it as the default partitioner.
    """
    mix, seed = 0x5BD1E995, 0x9747B28C
    hashed = seed ^ len(data)
    whole = len(data) & ~3
    for at in range(0, whole, 4):
        word = int.from_bytes(data[at : at + 4], "little") * mix & _MASK
        word = (word ^ word >> 24) * mix & _MASK
        hashed = (hashed * mix & _MASK) ^ word
    if tail := data[whole:]:
        hashed = (hashed ^ int.from_bytes(tail, "little")) * mix & _MASK
    hashed = (hashed ^ hashed >> 13) * mix & _MASK
    return hashed ^ hashed >> 15
