"""What is where the output should be, and disks that do not take it."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from faults import OLD, OUTPUTS


@pytest.mark.parametrize("fault", OUTPUTS, ids=lambda fault: fault.name)
def test_refused(fault, meets):
    meets(fault)


# Disk -> its size, whether it is read only, what is said of it. That it is full is only sometimes told to numpy.
DISKS = {
    "small": ("size=600k", "rw", "small: cannot write all of it there, the disk may be full; choose another --outfile"),
    "full": ("size=24k", "rw", "full: cannot write all of it there, No space left on device; choose another --outfile"),
    "without-inodes": ("size=600k,nr_inodes=2", "rw", "without-inodes: cannot write there, No space left on device"),
    "read-only": ("size=600k", "ro", "read-only: cannot write there, Read-only file system; choose another --outfile"),
}

# Converts once for each disk, and tells the status, what is there, and whether the older output is as it was.
CONVERT = """
import sys
from pathlib import Path
from sherry_gguf.cli import main

sys.stdout = open(sys.argv[1], "w")
for disk in map(Path, sys.argv[3:]):
    status = main(["convert", sys.argv[2], "--outfile", str(disk / "x.gguf"), "--force"])
    same = (disk / "x.gguf").read_bytes() == Path("x.gguf").read_bytes()
    print(disk, status, same, *(path.name for path in disk.iterdir()))
"""

# A file system of its own that only this process sees, as root of a user namespace where it is not root.
UNSHARE = ("unshare", "--mount", "--user", "--map-root-user")


def test_disks_that_do_not_take_it(place, tmp_path):
    if shutil.which("unshare") is None or subprocess.run([*UNSHARE, "true"], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here (unshare --mount)")
    (tmp_path / "x.gguf").write_bytes(OLD)
    script = ""
    for disk, (size, mode, _) in DISKS.items():
        (tmp_path / disk).mkdir()
        script += f"mount -t tmpfs -o {size} none {disk}\ncp x.gguf {disk}\nmount -o remount,{mode} {disk}\n"
    script += '"$@"'
    convert = [sys.executable, "-c", CONVERT, "told", place.model, *DISKS]
    done = subprocess.run(
        [*UNSHARE, "bash", "-euc", script, "bash", *convert], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for (_, _, said), line in zip(DISKS.values(), done.stderr.splitlines(), strict=True):
        assert line.startswith("sherry-gguf convert: error: ")
        assert said in line
    assert (tmp_path / "told").read_text().splitlines() == [f"{disk} 1 True x.gguf" for disk in DISKS]
