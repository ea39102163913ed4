"""Which weights of a matrix share a scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from sherry_gguf.errors import SherryError, Way
from sherry_gguf.formats.groups import GROUP, PERIOD, Grid
from sherry_gguf.formats.sherry import SHERRY
from sherry_gguf.formats.stq1_0 import STQ1_0

Sharing = Literal["per_group", "per_channel", "per_tensor"]
SHARINGS: Final[tuple[Sharing, ...]] = get_args(Sharing)

# what a trainer of each grid shares a scale among if nobody says otherwise
DEFAULT_GROUP_SIZE: Final[dict[Grid, int]] = {"consecutive": SHERRY.block, "stride16": STQ1_0.block}


@dataclass(frozen=True)
class Granularity:
    """sharing: the published trainer's word; group_size: weights of a row, for ``per_group`` alone."""

    sharing: Sharing = "per_group"
    group_size: int = DEFAULT_GROUP_SIZE["consecutive"]

    def __str__(self) -> str:
        return f"per_group {self.group_size}" if self.sharing == "per_group" else self.sharing

    def run_length(self, rows: int, row_length: int, grid: Grid = "consecutive") -> int:
        """The length of a scale run: how many neighbours of a [rows, row_length] matrix share a scale.

        Raises SherryError where groups of 4 or scale runs would cross the end of a row, or groups that of a scale run.
        """
        if row_length % PERIOD[grid]:
            raise SherryError(
                f"rows of {row_length} weights are no multiple of {PERIOD[grid]}, as {grid} groups of {GROUP} need: "
                f"not a Sherry layer",
                Way.LEAVE_OUT,
            )
        if self.sharing == "per_tensor":
            return rows * row_length
        if self.sharing == "per_channel":
            return row_length
        if self.group_size % PERIOD[grid] or row_length % self.group_size:
            raise SherryError(
                f"group_size {self.group_size} does not divide rows of {row_length} weights into {grid} groups of "
                f"{GROUP}",
                Way.GROUP_SIZE,
                Way.LEAVE_OUT,
            )
        return self.group_size


def parse_granularity(sharing: object, group_size: object = None) -> Granularity:
    """``per_group`` with a group size, ``per_channel`` or ``per_tensor``; SherryError for anything else."""
    if sharing == "per_group":
        if not isinstance(group_size, int) or isinstance(group_size, bool) or group_size <= 0:
            raise SherryError(f"per_group needs a positive group size, got {group_size!r}", Way.GROUP_SIZE)
        return Granularity("per_group", group_size)
    if sharing == "per_channel" or sharing == "per_tensor":
        return Granularity(sharing)
    raise SherryError(f"granularity {sharing!r} is none of {', '.join(SHARINGS)}", Way.DECLARE)
