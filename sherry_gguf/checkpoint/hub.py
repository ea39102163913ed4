"""A model named by its id on the Hugging Face Hub: what of it is needed, fetched into the Hub's own cache."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from sherry_gguf.checkpoint.stores import INDEX, NO_WEIGHTS, SINGLE
from sherry_gguf.errors import SherryError, Way

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
# configuration, tokenizer, templates of chats, and the card that tells the model's name and licence
_BESIDE = (".json", ".txt", ".model", ".tiktoken", ".jinja")
_CARD = "README.md"
_TEMPLATES = "additional_chat_templates"


def fetched(model: Path, revision: str | None = None, *, code: bool = False) -> Path:
    """The model's directory: the path itself if it is there, or no id; else a snapshot of the Hub's repository.

    An interrupted download goes on where it stopped, and what is in the Hub's cache is used without a network.
    revision: a branch, tag or commit; code: the repository's Python files too. Raises SherryError where there is no
    such repository, or none can be reached.
    """
    if model.exists() or not _ID.fullmatch(str(model)) or _missing_inside(model):
        if revision is not None:
            raise SherryError(f"{model}: is no id on the Hub, of which alone there are revisions")
        return model
    # imported here: it takes a second, and most models are folders
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name = str(model)
    try:
        try:
            # one request; a list of its files would be asked for again and again where nobody answers
            found = HfApi().model_info(name, revision=revision).siblings or []
        except HfHubHTTPError:  # an answer, and no lack of a network
            raise
        except Exception:  # of the libraries below, each has exceptions of its own for that
            return Path(snapshot_download(name, revision=revision, local_files_only=True))
        files = needed((file.rfilename for file in found), code)
        return Path(snapshot_download(name, revision=revision, allow_patterns=[*map(_exactly, files)]))
    except HfHubHTTPError as error:
        said = " ".join(str(error.server_message or error).split())
        raise SherryError(f"{name}: is no folder here, and the Hub does not give it: {said}") from error
    except LocalEntryNotFoundError as error:
        raise SherryError(
            f"{name}: is no folder here, and the Hub cannot be reached: check the network", Way.DOWNLOAD(name)
        ) from error


def needed(files: Iterable[str], code: bool = False) -> list[str]:
    """Of a repository's files those that a conversion reads, as ``stores.open_directory`` chooses the weights."""
    files = list(files)
    at_top = [name for name in files if "/" not in name]
    templates = [name for name in files if PurePosixPath(name).parent.name == _TEMPLATES and name.endswith(".jinja")]
    safetensors = [name for name in at_top if name.endswith(".safetensors")]
    weights = safetensors or [name for name in at_top if name.endswith(_WEIGHTS) and not NO_WEIGHTS.fullmatch(name)]
    if SINGLE in safetensors and INDEX not in at_top:
        weights = [SINGLE]
    beside = [
        name
        for name in at_top
        if (
            name.endswith((*_BESIDE, ".py") if code else _BESIDE)
            and (not name.endswith(".index.json") or name == INDEX)
        )
        or name == _CARD
    ]
    return sorted({*weights, *beside, *templates})


def _missing_inside(model: Path) -> bool:
    """Whether this names something in a folder that is there: a path that was mistyped, most likely."""
    return model.parent.is_dir()


def _exactly(name: str) -> str:
    """A pattern of fnmatch that fits this name alone."""
    return re.sub(r"([\[*?])", r"[\1]", name)
