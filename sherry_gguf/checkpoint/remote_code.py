"""A model's folder is data, never a program: Python files in it are not executed, whoever asks for it.

transformers executes the ``.py`` that an ``auto_map`` names where its caller passes ``trust_remote_code=True``, and
asks on the terminal where the caller passes nothing. llama.cpp's converter has calls of both kinds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sherry_gguf.checkpoint.json_file import read_json
from sherry_gguf.checkpoint.replaced import replaced
from sherry_gguf.errors import SherryError, Way

_CONFIGS = ("tokenizer_config.json", "config.json")  # where an auto_map can be


@contextmanager
def remote_code(allowed: bool = False) -> Iterator[None]:
    """While the context is open, transformers executes no file of a model, and does not ask; unless it is allowed.

    A class of transformers' own is taken where there is one. Otherwise the load raises SherryError, which names the
    file. allowed: calls that say nothing of it execute such files, without asking.
    """
    import transformers
    from transformers import dynamic_module_utils

    with ExitStack() as stack:
        for loader in (transformers.AutoConfig, transformers.AutoTokenizer):
            stack.enter_context(replaced(loader, "from_pretrained", _loading(loader, allowed)))
        if not allowed:
            # the one place where all of its loaders execute a file, and the time that they wait for an answer
            stack.enter_context(replaced(dynamic_module_utils, "get_class_in_module", _refuse))
            stack.enter_context(replaced(dynamic_module_utils, "TIME_OUT_REMOTE_CODE", 0))
        yield


def _loading(loader: Any, allowed: bool) -> Callable[..., Any]:
    """``loader.from_pretrained`` that does as ``remote_code`` says."""
    original = loader.from_pretrained

    @functools.wraps(original)
    def from_pretrained(model: Any, *args: Any, **kwargs: Any) -> Any:
        if allowed:
            kwargs.setdefault("trust_remote_code", True)
            return original(model, *args, **kwargs)
        kwargs["trust_remote_code"] = False
        try:
            return original(model, *args, **kwargs)
        except ValueError as error:
            if "trust_remote_code" not in str(error):
                raise
            raise _refusal(Path(model), loader.__name__) from error

    return from_pretrained


def _refusal(model: Path, loader: str) -> SherryError:
    for config in _CONFIGS:
        if (model / config).is_file():
            auto_map = read_json(model / config).get("auto_map")
            entry = auto_map.get(loader) if isinstance(auto_map, dict) else None
            named = next((name for name in (entry if isinstance(entry, list) else [entry]) if name), None)
            if named is not None:
                file = f"{str(named).rpartition('--')[2].rpartition('.')[0]}.py"
                return SherryError(
                    f"{model / config}: its auto_map names {file} for {loader}, and code of a model is not executed",
                    Way.TRUST_REMOTE_CODE,
                )
    return SherryError(f"{model}: its {loader} is code, which is not executed", Way.TRUST_REMOTE_CODE)


def _refuse(class_name: str, module_path: Any, **_: Any) -> Any:
    raise SherryError(f"{module_path}: code of a model is not executed", Way.TRUST_REMOTE_CODE)
