"""A file that holds a model's tokenizer and parameters and no tensor, as llama.cpp's own tests of tokenizers have."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sherry_gguf import llama_cpp
from sherry_gguf.checkpoint import Source
from sherry_gguf.checkpoint.json_file import read_json
from sherry_gguf.convert.guards import inputs_of, one_line_errors, require_tokenizer
from sherry_gguf.convert.model import upstream_class
from sherry_gguf.convert.naming import directory_for, template, under_its_name
from sherry_gguf.convert.settings import name_an_end
from sherry_gguf.convert.vocabulary import without_tensors
from sherry_gguf.errors import SherryError
from sherry_gguf.files.outfile import rename_durably, require_free, temporary_beside


@dataclass(frozen=True)
class VocabularyFile:
    """outfile; how many tokens it has."""

    outfile: Path
    tokens: int


def convert_vocabulary(
    source: Source,
    outfile: Path | None = None,
    *,
    model_name: str | None = None,
    metadata: Path | None = None,
    force: bool = False,
) -> VocabularyFile:
    """Write the file; the arguments are those of ``convert``. Weights are not read, and need not be there.

    Raises SherryError, and then leaves outfile as it was.
    """
    if metadata is not None and not metadata.is_file():
        raise SherryError(f"{metadata}: no such file")
    llama_cpp.use_pinned_gguf()
    directory = source.config_dir or source.model
    config = read_json(directory / "config.json")
    require_tokenizer(directory)
    proposed = template(outfile) if outfile else directory_for(directory)
    with one_line_errors(source):
        instance = _opened(directory, proposed, model_name, metadata)
        with under_its_name(directory) as instance.dir_model_card:
            instance.prepare_metadata(vocab_only=True)
        name_an_end(instance, config)
    target: Path = instance.fname_out
    require_free(target, force, inputs_of(source, metadata))
    writer = instance.gguf_writer
    tokens = len(writer.kv_data[0]["tokenizer.ggml.tokens"].value)
    with temporary_beside(target) as temporary:
        writer.write_header_to_file(path=temporary)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        rename_durably(temporary, target, force)
    return VocabularyFile(target, tokens)


def _opened(directory: Path, outfile: Path, model_name: str | None, metadata: Path | None) -> Any:
    import gguf

    folder = Path(os.path.abspath(directory))
    with upstream_class(folder, directory) as (base, hparams):
        return without_tensors(base)(
            folder,
            gguf.LlamaFileType.ALL_F32,
            outfile,
            model_name=model_name,
            metadata_override=metadata,
            hparams=hparams,
        )
