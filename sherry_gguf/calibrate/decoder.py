"""A model of transformers whose decoder layers are in memory one at a time.

The model is built without weights. Its own forward is called once, with every decoder layer's ``forward`` replaced, to
learn what each layer is handed beside the hidden states: masks, positions, rotary embeddings. With these any one layer
can be computed alone, of whatever architecture, as long as what it is handed does not depend on the tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.checkpoint.replaced import replaced
from sherry_gguf.checkpoint.tokens import transformers_errors
from sherry_gguf.errors import SherryError

# How checkpoints name the experts' matrices that transformers stacks: gate, up and down.
_EXPERT_NAMES = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
HEAD = "lm_head.weight"
_STACKED = re.compile(r"^(?P<experts>.*\.experts)\.(?P<what>gate_up_proj|down_proj)$")


class Decoder:
    """layers: the decoder layers, on no device; path: of their list in the model, as names of tensors begin.

    The place after the last layer is that of what follows it: the last norm, and the head where it is asked for.
    """

    def __init__(self, checkpoint: Checkpoint, names: Iterable[str], device: torch.device) -> None:
        """names: of linear layers' weights, which tell the decoder layers from other lists of modules.

        Raises SherryError for an architecture that transformers does not know, or whose layers are not found.
        """
        self.checkpoint, self.device = checkpoint, device
        with transformers_errors(checkpoint.directory, "no model of this config.json"), _without_weights():
            config = AutoConfig.from_pretrained(checkpoint.directory, trust_remote_code=False)
            config._experts_implementation = "eager"  # one linear layer an expert, whose inputs can be seen
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False).eval()
        self._whole, self._model, whole = model, model.base_model, f"{model.base_model_prefix}."
        counts = {
            whole + path: sum(name.startswith(f"{whole}{path}.") for name in names)
            for path, module in self._model.named_modules()
            if isinstance(module, nn.ModuleList)
        }
        self.path = max(counts, key=lambda path: (counts[path], -len(path)), default="")
        if not counts.get(self.path):
            raise SherryError(
                f"{checkpoint.path}: none of its linear layers is in a list of decoder layers of "
                f"{type(self._model).__name__}, as transformers builds it"
            )
        self._prefix = whole
        self.layers: nn.ModuleList = self._model.get_submodule(self.path.removeprefix(whole))
        self._handed: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def place(self, name: str) -> int | None:
        """The decoder layer that a tensor of the checkpoint is in, the place after all for the head; or None."""
        if name == HEAD:
            return len(self.layers)
        found = re.match(rf"{re.escape(self.path)}\.(\d+)\.", name)
        return int(found[1]) if found and int(found[1]) < len(self.layers) else None

    def embed(self, windows: torch.Tensor, out: torch.Tensor) -> None:
        """int64[windows, length] -> out float32[windows, length, hidden]: what enters the first decoder layer.

        Raises SherryError for layers that get more than hidden states from the tokens.
        """
        outer = {
            name: parameter
            for name, parameter in self._model.named_parameters()
            if not f"{self._prefix}{name}".startswith(f"{self.path}.")
        }
        self._fill(self._model, outer, self._prefix)
        for module in self._model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self.device))
        self._handed = self._listen(windows[:1], out[:1])
        if not _alike(self._handed, self._listen(windows[:1].flip(1), None)):
            raise SherryError(
                f"{self.checkpoint.path}: decoder layers of {type(self._model).__name__} are handed more of each token "
                f"than hidden states, and calibration knows of these alone"
            )
        for i in range(1, len(windows)):
            self._listen(windows[i : i + 1], out[i : i + 1])
        for name in outer:
            _set(self._model, name, torch.empty(0, device="meta"))

    def load(self, index: int) -> nn.Module:
        """A decoder layer with its weights in float32, or what follows; SherryError where the checkpoint lacks one."""
        if index == len(self.layers):
            whole: nn.Module = self._whole
            self._fill(whole, self._after(), "")
            return whole
        layer = self.layers[index]
        self._fill(layer, dict(layer.named_parameters()), f"{self.path}.{index}.")
        return layer

    def free(self, index: int) -> None:
        """Drop a layer's weights."""
        if index == len(self.layers):
            for name in self._after():
                _set(self._whole, name, torch.empty(0, device="meta"))
            return
        for name, _ in list(self.layers[index].named_parameters()):
            _set(self.layers[index], name, torch.empty(0, device="meta"))

    def forward(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """float32[1, length, hidden] through a loaded layer. What follows the last one leaves it as it is."""
        if index == len(self.layers):
            with self._instead(lambda *_: hidden), transformers_errors(self.checkpoint.path, "cannot be computed"):
                self._whole(inputs_embeds=hidden, use_cache=False)
            return hidden
        args, kwargs = self._handed[index]
        with transformers_errors(self.checkpoint.path, f"layer {index} cannot be computed"):
            out = self.layers[index](hidden, *args, **kwargs)
        found: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return found

    def _listen(self, tokens: torch.Tensor, out: torch.Tensor | None) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """What each layer is handed beside the hidden states; those of the first go to ``out``."""
        handed: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}

        def listen(index: int, hidden: torch.Tensor, *beside: Any) -> torch.Tensor:
            handed[index] = beside[:-1], beside[-1]
            if index == 0 and out is not None:
                out.copy_(hidden)
            return hidden

        with self._instead(listen), transformers_errors(self.checkpoint.path, "cannot be computed"):
            self._model(tokens.to(self.device), use_cache=False)
        if sorted(handed) != list(range(len(self.layers))):
            raise SherryError(f"{self.checkpoint.path}: not every decoder layer is used, and all must be")
        return [handed[index] for index in range(len(self.layers))]

    @contextmanager
    def _instead(self, forward: Callable[..., torch.Tensor]) -> Iterator[None]:
        """While the context is open, layers compute forward(index, hidden, *what they are handed, and by name)."""

        def of(index: int) -> Callable[..., torch.Tensor]:
            def of_index(*args: Any, **kwargs: Any) -> torch.Tensor:
                hidden = args[0] if args else kwargs.pop("hidden_states")
                return forward(index, hidden, *args[1:], kwargs)

            return of_index

        for index, layer in enumerate(self.layers):
            layer.forward = of(index)
        try:
            yield
        finally:
            for layer in self.layers:
                del layer.forward

    def _after(self) -> dict[str, nn.Parameter]:
        """The parameters that are in no layer, but for the embedding."""
        embedding = {id(parameter) for parameter in self._whole.get_input_embeddings().parameters()}
        named = self._whole.named_parameters()
        return {n: p for n, p in named if id(p) not in embedding and not n.startswith(f"{self.path}.")}

    def _fill(self, module: nn.Module, parameters: dict[str, nn.Parameter], prefix: str) -> None:
        for name, parameter in parameters.items():
            tensor = self._stored(prefix + name, parameter.shape)
            if tensor.shape != parameter.shape and parameter.numel():
                raise SherryError(
                    f"{self.checkpoint.path}: {prefix}{name} has shape {list(tensor.shape)}, and by config.json it has "
                    f"{list(parameter.shape)}"
                )
            _set(module, name, tensor.to(self.device, torch.float32))

    def _stored(self, name: str, shape: torch.Size) -> torch.Tensor:
        """A tensor of the checkpoint by its name in transformers' model, experts stacked as they are there."""
        for own in _spellings(name):
            if own in self.checkpoint.names:
                return self.checkpoint.load(own)
        parts = expert_names(name, self.checkpoint.names)
        if not parts:
            raise SherryError(f"{self.checkpoint.path}: no tensor in it is {name} of transformers' model")
        load = self.checkpoint.load
        return torch.stack([torch.cat([load(part).to(torch.float32) for part in expert]) for expert in parts])


def expert_names(stacked: str, names: Iterable[str]) -> list[list[str]]:
    """For each expert of a stack of transformers the tensors whose rows make it up; [] for what is no stack."""
    found = _STACKED.match(stacked)
    if found is None:
        return []
    known = set(names)
    for experts in _spellings(found["experts"]):
        for gate, up, down in _EXPERT_NAMES:
            parts = (down,) if found["what"] == "down_proj" else (gate, up)
            stack: list[list[str]] = []
            while all(f"{experts}.{len(stack)}.{part}.weight" in known for part in parts):
                stack.append([f"{experts}.{len(stack)}.{part}.weight" for part in parts])
            if stack:
                return stack
    return []


def _spellings(name: str) -> tuple[str, ...]:
    """A name of transformers' model, and as Mixtral's checkpoints have it."""
    return tuple(dict.fromkeys((name, name.replace(".mlp.", ".block_sparse_moe."))))


@contextmanager
def _without_weights() -> Iterator[None]:
    """While the context is open, parameters of new modules have shapes and no memory; buffers are as always."""
    register = nn.Module.register_parameter

    def shape_only(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)

    with replaced(nn.Module, "register_parameter", shape_only):
        yield


def _set(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    owner, _, own = name.rpartition(".")
    module.get_submodule(owner)._parameters[own] = nn.Parameter(tensor, requires_grad=False)


def _alike(left: Any, right: Any) -> bool:
    """Whether two structures of tensors and other values are equal."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_alike(value, right[key]) for key, value in left.items())
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(_alike(*pair) for pair in zip(left, right, strict=True))
    return left is right or bool(left == right)
