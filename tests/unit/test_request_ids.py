from __future__ import annotations

import time
from uuid import RFC_4122, UUID

from gasket.request_ids import new_request_id


def test_an_id_is_a_uuid_of_version_7() -> None:
    before = time.time_ns() // 1_000_000
    ids = [new_request_id() for _ in range(1000)]
    after = time.time_ns() // 1_000_000
    for text in ids:
        uuid = UUID(text)
        assert str(uuid) == text
        assert uuid.variant == RFC_4122
        assert uuid.version == 7
        assert before <= uuid.int >> 80 <= after
    assert len(set(ids)) == len(ids)


def test_all_of_its_74_random_bits_are_random() -> None:
    """Each bit is both 0 and 1 in some of 100 ids: that one is not happens once in 10^28 runs."""
    random = (1 << 76) - 1 & ~(0xF << 76) & ~(0b11 << 62) | 0xFFF << 64
    ones, zeros = 0, 0
    for _ in range(100):
        value = UUID(new_request_id()).int
        ones, zeros = ones | value, zeros | ~value
    assert ones & zeros & random == random
    assert random.bit_count() == 74


def test_later_ids_are_greater_as_text() -> None:
    first = new_request_id()
    until = time.time_ns() // 1_000_000 + 2
    while time.time_ns() // 1_000_000 < until:
        pass
    assert first < new_request_id()
