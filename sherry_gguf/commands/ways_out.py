"""Ways out of a refusal, as the flags of the commands: the rest of the package knows the ways, and no flag.

A command's own module has ``WAYS``, which run_command gives to the message. What is missing there is said in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sherry_gguf.errors import Way

SOURCE: Final[Mapping[Way, str]] = {
    Way.CONFIG_DIRECTORY: "name the directory that has config.json and the tokenizer (--config DIR)",
    Way.STATE_DICT: "to convert the state dict, name the file itself: {0} --config {1}",
    Way.DECLARE: "if they were trained as Sherry, say how (--granularity per_group --group-size 128)",
    Way.DECLARE_STRIDE: "for the groups of STQ1_0 --granularity per_group --grid stride16 --outtype stq1_0",
    Way.DECLARE_SPARSE: "if these are Sherry's latents with their zeros applied, declare it (--granularity per_group)",
    Way.GROUP_SIZE: "give the one it was trained with (--group-size N)",
    Way.NAME_LAYERS: "name the quantized linear layers of this architecture (--sherry-layers REGEX)",
    Way.LEAVE_OUT: "if this is no Sherry layer, exclude it (--sherry-layers REGEX names the others)",
    Way.ONLY_BAKED: "leave them as they are (--sherry-layers REGEX names the others)",
    Way.SEEN_GRID: "leave out --grid, which is for latent weights",
    Way.DECLARE_TERNARY: "--method ternary reads them as they are",
    Way.DECLARE_ROUNDED: "if they were trained so, say how (--method absmean --granularity per_group --group-size 128)",
    Way.DECLARE_DENSE: "if they are latents of a dense ternary method, name it (--method bitnet)",
    Way.DOWNLOAD: "download it elsewhere (`hf download {0} --local-dir DIR`), and convert that folder",
    Way.TRUST_REMOTE_CODE: "--trust-remote-code executes it, for those who have read it",
    Way.CHANGE_WEIGHTS: "--allow-lossy quantizes a plain model, and changes it",
}

OUTFILE: Final[Mapping[Way, str]] = {
    Way.OTHER_OUTFILE: "choose another --outfile",
    Way.REPLACE: "replace it with --force",
}

GGUF: Final[Mapping[Way, str]] = {
    Way.INSPECT: "`sherry-gguf inspect {0}` shows the types",
    Way.MERGE: "merge the parts first: `llama-gguf-split --merge FIRST_PART OUTFILE` of a llama.cpp that reads them",
}

BUILD: Final[Mapping[Way, str]] = {
    Way.BUILD: "run `sherry-gguf build{0}`",
    Way.BUILD_TARGET: "`sherry-gguf build --target {0}` builds it",
    Way.BUILD_TESTS: "`sherry-gguf build --tests` builds the native tests",
    Way.BUILD_PIN: "`sherry-gguf build` goes back to the pin",
    Way.CHECKSUM: "give it (--sha256 HEX), from where you trust it",
    Way.GIVE_SDIST: "get it elsewhere and run `sherry-gguf build --sdist FILE`",
}
