"""What is finished of a calibration, in a folder of its own: one file a decoder layer, to go on with later."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sherry_gguf.calibrate.feedback import Planes
from sherry_gguf.errors import SherryError, Way

_STATE: Final = "calibration.json"
_ACTIVATIONS: Final = "activations-"


class State:
    """A folder with the layers that are finished. facts: what their bytes depend on, as JSON."""

    def __init__(self, directory: Path, facts: Mapping[str, Any]) -> None:
        """What is there of the same facts is kept, what is there of others is removed.

        Raises SherryError for a folder that cannot be written, or that is no calibration's.
        """
        self.directory = directory
        self._names: dict[str, int] = {}
        try:
            state = directory / _STATE
            if directory.is_dir() and any(directory.iterdir()) and not state.is_file():
                raise SherryError(f"{directory}: is no folder of a calibration", Way.OTHER_OUTFILE)
            directory.mkdir(exist_ok=True)
            wanted = json.dumps(facts, sort_keys=True)
            for folder in directory.glob(f"{_ACTIVATIONS}*"):  # of one that was killed
                shutil.rmtree(folder)
            if not state.is_file() or state.read_text(encoding="utf-8") != wanted:
                for file in directory.glob("layer-*.safetensors*"):
                    file.unlink()
                state.write_text(wanted, encoding="utf-8")
        except OSError as error:
            raise SherryError(f"{directory}: cannot write there, {error.strerror}", Way.OTHER_OUTFILE) from error

    @contextmanager
    def activations(self) -> Iterator[Path]:
        """A folder for what is only needed while it is worked on."""
        with tempfile.TemporaryDirectory(prefix=_ACTIVATIONS, dir=self.directory) as folder:
            yield Path(folder)

    def remove_if_empty(self) -> None:
        """Remove the folder, if no layer is finished."""
        if not any(self.directory.glob("layer-*.safetensors")):
            self.remove()

    def finished(self, layer: int) -> bool:
        """Whether a layer is; one whose file is damaged is not."""
        try:
            with safe_open(self._file(layer), framework="pt"):
                return True
        except (OSError, SafetensorError):
            return False

    def write(self, layer: int, planes: Mapping[str, Planes], found: Mapping[str, Any]) -> None:
        """The matrices of a layer by name, and what is to be said of them. The file is complete, or not there."""
        tensors = {}
        for name, matrix in planes.items():
            tensors[f"{name}:codes"] = matrix.codes.cpu().contiguous()
            tensors[f"{name}:scales"] = matrix.scales.cpu().contiguous()
        file = self._file(layer)
        temporary = file.with_name(f"{file.name}.part")
        try:
            save_file(tensors, temporary, metadata={"found": json.dumps(found)})
        except SafetensorError as error:
            raise SherryError(f"{self.directory}: cannot write all of it there, {error}", Way.OTHER_OUTFILE) from error
        os.replace(temporary, file)

    def found(self, layer: int) -> dict[str, Any]:
        """What is to be said of a finished layer."""
        with safe_open(self._file(layer), framework="pt") as file:
            said: dict[str, Any] = json.loads(file.metadata()["found"])
            return said

    def read(self, layer: int, name: str) -> Planes:
        """A matrix of a finished layer."""
        with safe_open(self._file(layer), framework="pt") as file:
            return Planes(file.get_tensor(f"{name}:codes"), file.get_tensor(f"{name}:scales"))

    def remove(self) -> None:
        """Remove the folder, once nothing needs it any more."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _file(self, layer: int) -> Path:
        return self.directory / f"layer-{layer:04d}.safetensors"
