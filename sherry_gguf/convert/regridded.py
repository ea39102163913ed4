"""A plan that also reorders channels, where the model and its scales allow that (``weights/channel_order.py``)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.convert.plan import Plan
from sherry_gguf.errors import SherryError, Way, naming
from sherry_gguf.files.gguf_file import open_gguf
from sherry_gguf.weights.channel_order import KEY, REGRIDDED, is_projection, moved_dims, require_known


def regridded(plan: Plan, checkpoint: Checkpoint) -> Plan:
    """The plan with ``moved`` for every tensor of the checkpoint. No weight is read.

    Scales of baked layers are known by a sample of rows: those that are finer than STQ1_0's blocks in others, the type
    refuses. Raises SherryError for a model that cannot be regridded exactly, and says why.
    """
    infos = {name: checkpoint.info(name) for name in checkpoint.names}
    with naming(str(checkpoint.path)):
        if plan.rule is not None:
            raise SherryError("its weights are dense ternary, without groups to put in another order", Way.NO_REGRID)
        moved = moved_dims({name: info.shape for name, info in infos.items()}, checkpoint.config)
        for name, info in infos.items():
            if not info.dtype.is_floating_point:
                raise SherryError(f"{name}: has dtype {info.dtype}; regridding moves floating-point weights alone")
        for name, layer in plan.layers.items():
            if not is_projection(name):
                raise SherryError(f"{name}: regridding wants embedding and head in floating point", Way.LEAVE_OUT)
            if "consecutive" not in layer.grids:
                raise SherryError(f"{name}: its groups are {REGRIDDED.name}'s already", Way.NO_REGRID)
            rows, row_length = infos[name].shape
            if layer.source != "baked" and plan.granularity.run_length(rows, row_length) % REGRIDDED.block:
                raise SherryError(
                    f"{name}: scales {plan.granularity} are finer than {REGRIDDED.name}'s, one for "
                    f"{REGRIDDED.block} weights",
                    Way.AUTO_NO_REGRID,
                )
    return replace(plan, moved=moved)


def is_regridded(path: Path) -> bool:
    """Whether the channels of a GGUF file are in that order. SherryError where it names another that is not known."""
    order = open_gguf(path).value(KEY)
    if order is not None:
        with naming(str(path)):
            require_known(order)
    return order is not None
