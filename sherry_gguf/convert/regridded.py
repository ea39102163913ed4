"""A plan that also reorders channels, where the model and its scales allow that (``sherry_gguf.regrid``)."""

from __future__ import annotations

from dataclasses import replace

from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.convert.plan import Plan
from sherry_gguf.errors import SherryError, naming
from sherry_gguf.regrid import is_projection, moved_dims
from sherry_gguf.stq1_0 import BLOCK, TYPE_NAME

REGRIDDED_TYPE = TYPE_NAME.lower()  # the --outtype that regridding is for


def regridded(plan: Plan, checkpoint: Checkpoint) -> Plan:
    """The plan with ``moved`` for every tensor of the checkpoint. No weight is read.

    Scales of baked layers are known by a sample of rows: those that are finer than STQ1_0's blocks in others, the type
    refuses. Raises SherryError for a model that cannot be regridded exactly, and says why.
    """
    infos = {name: checkpoint.info(name) for name in checkpoint.names}
    with naming(str(checkpoint.path)):
        moved = moved_dims({name: info.shape for name, info in infos.items()}, checkpoint.config)
        for name, info in infos.items():
            if not info.dtype.is_floating_point:
                raise SherryError(f"{name}: has dtype {info.dtype}; regridding moves floating-point weights alone")
        for name, layer in plan.layers.items():
            if not is_projection(name):
                raise SherryError(
                    f"{name}: regridding wants embedding and head in floating point; "
                    f"leave it out of the Sherry layers (--sherry-layers REGEX)"
                )
            if "consecutive" not in layer.groups:
                raise SherryError(f"{name}: its groups are STQ1_0's already; leave out --regrid")
            rows, row_length = infos[name].shape
            if layer.source != "baked" and plan.granularity.run_length(rows, row_length) % BLOCK:
                raise SherryError(
                    f"{name}: scales {plan.granularity} are finer than STQ1_0's, one for {BLOCK} weights; "
                    f"--outtype sherry or q2_0 holds them as they are"
                )
    return replace(plan, moved=moved)
