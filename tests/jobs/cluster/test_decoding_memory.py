"""Room for the largest image, planned before anything starts."""

from __future__ import annotations

import pytest

from captionlib.images.decode import MAX_PIXELS
from jobs.cluster.resources import check_decoding_memory, decoding_bytes, machine_memory_gib


def test_the_default_needs_no_room_of_its_own():
    assert decoding_bytes(MAX_PIXELS) is None
    check_decoding_memory(MAX_PIXELS, 0.1)


def test_larger_images_need_16_bytes_per_pixel():
    assert decoding_bytes(2**28) == 2**32
    check_decoding_memory(2**28, 4.0)
    with pytest.raises(ValueError, match=r"--max-pixels 268435456 needs up to 4\.0 GiB .* has 3\.9 GiB"):
        check_decoding_memory(2**28, 3.9)


def test_this_machine_has_some_memory():
    assert machine_memory_gib() > 0.1
