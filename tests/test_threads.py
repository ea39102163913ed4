"""Work in parts: the results in order, the first error, and one thread inside another."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest

from sherry_gguf.threads import in_parts, rows_of, threads


@pytest.mark.parametrize("count", [1, 2, 5])
def test_parts_cover_all_and_come_in_order(count):
    with threads(count):
        assert in_parts(lambda start, stop: (start, stop), 7, 3) == [(0, 3), (3, 6), (6, 7)]
        assert in_parts(lambda start, stop: (start, stop), 0, 3) == []


def test_two_parts_are_worked_on_at_once():
    meeting = threading.Barrier(2, timeout=60)
    with threads(2):
        in_parts(lambda start, stop: meeting.wait(), 2, 1)
    assert not meeting.broken


@pytest.mark.parametrize("count", [1, 3])
def test_the_error_of_the_first_part_is_raised(count):
    later = threading.Event()

    def work(start, stop):
        if start == 0 and count > 1:
            assert later.wait(60)
        later.set()
        raise ValueError(f"part {start}")

    with threads(count), pytest.raises(ValueError, match="part 0"):
        in_parts(work, 3, 1)


def test_parts_of_parts_wait_for_nobody():
    with threads(2):
        assert in_parts(lambda start, stop: in_parts(lambda a, b: a + 10 * start, 3, 1), 2, 1) == [
            [0, 1, 2],
            [10, 11, 12],
        ]


def test_two_conversions_at_once_have_threads_of_their_own():
    """Of two contexts that overlap the first to begin ends first: neither takes or leaves the other's threads."""
    second_began, first_ended = threading.Event(), threading.Event()
    found = []

    def second():
        with threads(2):
            second_began.set()
            assert first_ended.wait(60)
            found.append(in_parts(lambda start, stop: start, 2, 1))
        found.append(in_parts(lambda start, stop: start, 2, 1))

    other = threading.Thread(target=second)
    with threads(2):
        other.start()
        assert second_began.wait(60)
    first_ended.set()
    other.join(60)
    assert [*found, in_parts(lambda start, stop: start, 2, 1)] == [[0, 1]] * 3


@pytest.mark.parametrize("count", [1, 2])
def test_numpy_warns_as_it_does_outside(count):
    def overflow(start, stop):
        return np.float32(1e38) * np.ones(2, dtype=np.float32) * np.float32(1e38)

    with threads(count), warnings.catch_warnings():
        warnings.simplefilter("error")
        with np.errstate(over="ignore"):
            assert np.isinf(in_parts(overflow, 4, 1)).all()
        with np.errstate(over="raise"), pytest.raises(FloatingPointError):
            in_parts(overflow, 4, 1)


def test_long_rows_are_parts_of_their_own():
    assert rows_of(1 << 20) == 1
    assert rows_of(128) * 128 == 1 << 19
