"""Conversions that are stopped at whatever moment, two at once, and an input that becomes shorter meanwhile."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from faults import OLD, SINGLE, new_place

INTERRUPTED = "sherry-gguf convert: interrupted\n"
AT_ONCE = "sherry-gguf: interrupted\n"  # while there is nothing to clean up
STOPS = {signal.SIGINT: (130, (INTERRUPTED, AT_ONCE)), signal.SIGTERM: (143, ("",))}


@pytest.fixture(scope="session")
def duration(forks, expected, small, tmp_path_factory):
    """Seconds that an undisturbed conversion takes."""
    place = new_place(small, tmp_path_factory.mktemp("undisturbed"))
    begin = time.monotonic()
    assert forks.start(place).wait() == 0
    return time.monotonic() - begin


def moments(count, seed=14):
    """Random ones, spread over a conversion: each in a part of its own."""
    draw = random.Random(seed)
    return [(number + draw.random()) / count for number in range(count)]


def until_writing(place, conversion):
    """Wait for the temporary file."""
    while not parts(place):
        assert conversion.is_running()
        time.sleep(0.001)


def parts(place):
    return [path for path in place.outfile.parent.iterdir() if path != place.outfile]


def wait_for(moment, duration, place, conversion):
    if moment == "writing":
        until_writing(place, conversion)
    else:
        time.sleep(moment * duration)


def check_and_go_on(forks, place, expected, weights_of):
    """The older output is there, or the new one; the next conversion succeeds and leaves nothing beside it."""
    assert place.outfile.read_bytes() == OLD or weights_of(place.outfile) == expected
    following = forks.start(place)
    assert following.wait() == 0, following.stderr
    assert weights_of(place.outfile) == expected
    assert parts(place) == []


@pytest.mark.parametrize("moment", [*moments(5), "writing"])
def test_killed(moment, forks, place, duration, expected, weights_of):
    conversion = forks.start(place)
    wait_for(moment, duration, place, conversion)
    conversion.signal(signal.SIGKILL)
    assert conversion.wait() in (-signal.SIGKILL, 0)
    assert bool(parts(place)) or moment != "writing"
    check_and_go_on(forks, place, expected, weights_of)


@pytest.mark.parametrize("moment", [*moments(3), "writing"])
@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
def test_stopped(number, moment, forks, place, duration, expected, weights_of):
    status, said = STOPS[number]
    conversion = forks.start(place)
    wait_for(moment, duration, place, conversion)
    conversion.signal(number)
    found = conversion.wait()
    assert parts(place) == []
    assert found in (status, -number, 0), conversion.stderr
    assert found == 0 or conversion.stderr in said
    assert place.outfile.read_bytes() == OLD or weights_of(place.outfile) == expected
    assert found != 0 or place.outfile.read_bytes() != OLD


# A module like torch whose import is interrupted, and which answers that with an error of its own.
TORCH = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
except BaseException as error:
    raise ImportError("something in my initialization was interrupted") from error
"""


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "sherry_gguf", "convert"],
        ["-m", "sherry_gguf.convert"],
        ["-m", "sherry_gguf.parity"],
        ["convert/convert_sherry_to_gguf.py"],
    ],
    ids=" ".join,
)
def test_interrupted_while_modules_are_imported(command, repository, tmp_path):
    (tmp_path / "torch.py").write_text(TORCH)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{repository}"}
    done = subprocess.run(
        [sys.executable, *command, "absent"], cwd=repository, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 130
    assert done.stderr == AT_ONCE


@pytest.mark.parametrize("force", [True, False])
def test_two_at_once(force, forks, place, expected, weights_of):
    if not force:
        place.flags.clear()
        place.outfile.unlink()
    both = [forks.start(place) for _ in range(2)]
    statuses = [conversion.wait() for conversion in both]
    said = "".join(conversion.stderr for conversion in both)
    if force:
        assert statuses == [0, 0], said
    else:
        assert sorted(statuses) == [0, 1]
        assert (
            said == f"sherry-gguf convert: error: {place.outfile} exists; choose another --outfile; "
            "replace it with --force\n"
        )
    assert weights_of(place.outfile) == expected
    assert parts(place) == []


def test_an_input_that_becomes_shorter(forks, place):
    """It is read, and not mapped: a map would kill whoever looks at what is gone."""
    conversion = forks.start(place)
    until_writing(place, conversion)
    conversion.signal(signal.SIGSTOP)
    os.truncate(place.model / SINGLE, 20_000)
    conversion.signal(signal.SIGCONT)
    assert conversion.wait() == 1
    (line,) = conversion.stderr.splitlines()
    assert f"{SINGLE}: cannot be read, it became shorter while it was read; download or save it again" in line
    assert place.outfile.read_bytes() == OLD
    assert parts(place) == []


@pytest.fixture(scope="module")
def whole_duration(small, tmp_path_factory):
    """Seconds that the command takes, imports and all."""
    place = new_place(small, tmp_path_factory.mktemp("whole"))
    begin = time.monotonic()
    start_command(place).communicate()
    return time.monotonic() - begin


def start_command(place):
    arguments = [place.model, "--outfile", place.outfile, "--force"]
    return subprocess.Popen(
        [sys.executable, "-m", "sherry_gguf", "convert", *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("moment", moments(50))
def test_the_command_killed(moment, forks, place, whole_duration, expected, weights_of):
    command = start_command(place)
    time.sleep(moment * whole_duration)
    command.kill()
    command.communicate()
    check_and_go_on(forks, place, expected, weights_of)


@pytest.mark.long
@pytest.mark.parametrize("moment", moments(25))
@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
def test_the_command_stopped(number, moment, place, whole_duration, expected, weights_of):
    """At any moment but the start and the end of the interpreter itself, which says what it likes."""
    status, said = STOPS[number]
    command = start_command(place)
    time.sleep(moment * whole_duration)
    command.send_signal(number)
    _, stderr = command.communicate()
    assert parts(place) == []
    if "sherry_gguf" in stderr or command.returncode == status:  # the interpreter had started
        assert command.returncode == status
        assert stderr in said
    assert place.outfile.read_bytes() == OLD or weights_of(place.outfile) == expected
    assert command.returncode != 0 or place.outfile.read_bytes() != OLD
