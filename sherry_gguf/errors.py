"""The one exception of this package for bad input, and the ways out that it can name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum


class Way(Enum):
    """A way out of a refusal, in words that fit any caller; {0}, {1} .. stand for its values.

    Whoever raises an error knows the way, and a command knows its flag: ``commands/ways_out.py`` says it in flags.
    """

    # reading a checkpoint
    CONFIG_DIRECTORY = "name the directory that has config.json and the tokenizer"
    STATE_DICT = "to convert the state dict, name the file {0} and its configuration's directory {1}"
    DECLARE = "if they were trained as Sherry, declare the granularity, such as per_group with group size 128"
    DECLARE_STRIDE = "if they were trained in the groups of STQ1_0, declare per_group and the grid stride16"
    DECLARE_SPARSE = "if these are Sherry's latents with their zeros applied, declare the granularity"
    GROUP_SIZE = "give the group size it was trained with"
    NAME_LAYERS = "name the quantized linear layers by a regular expression"
    LEAVE_OUT = "leave it out of the Sherry layers, if it is none"
    ONLY_BAKED = "name the baked layers alone as Sherry layers, which leaves the others as they are"
    SEEN_GRID = "declare no grid: that of baked weights is seen"
    DECLARE_TERNARY = "declare the method ternary, which reads them as they are"
    DECLARE_ROUNDED = "if they were trained with absmean or twn, declare that method and the granularity"
    DECLARE_DENSE = "if they are latents of a dense ternary method, declare it, such as bitnet"
    CALIBRATE = "calibrate it on a text when it is converted, which changes a plain model to the sum of two planes"
    NO_CALIBRATION = "convert it without a calibration"
    CHANGE_WEIGHTS = "allow a lossy conversion, which quantizes a plain model and changes its weights"

    DOWNLOAD = "download it elsewhere, and name its folder"
    TRUST_REMOTE_CODE = "allow the model's own code to be executed, once you have read it"

    # choosing types
    ALL_FIT = "{0} holds all of them"
    NO_TYPE = "no one type holds all of them"
    AUTO = "auto takes for each tensor the smallest type that holds it"
    REST_AS = "store the tensors that match {0} as {1}"
    OTHER_TYPE = "store the tensor in another type, such as f16"
    EMBEDDING_TYPE = "choose another type for the embedding, such as f16"
    OUTPUT_TYPE = "choose another type for the output, such as f16"
    KEEP_SCALES = "store the tensor as f32, which keeps its scales as they are"
    REGRID = "reorder the channels, which makes them fit"
    NO_REGRID = "leave its channels in their order"
    AUTO_NO_REGRID = "leave its channels in their order, and take for each tensor the smallest type that holds it"
    REGRID_TYPE = "ask for {0}, the type that it is for"

    # reading a file
    I2S_LAYOUT = "say which of them it is"

    # writing
    OTHER_OUTFILE = "choose another output file"
    REPLACE = "allow replacing it"
    UNVERIFIED = "write it without verifying it"
    INSPECT = "an inspection shows the types"
    MERGE = "merge the parts with the llama-gguf-split of a llama.cpp that reads them"

    # running
    BUILD = "build llama.cpp{0}"
    BUILD_TARGET = "build the target {0}"
    BUILD_TESTS = "build the native tests"
    BUILD_PIN = "build the pinned llama.cpp instead"
    CHECKSUM = "give its SHA-256, or put a file with it beside"
    GIVE_SDIST = "get the sdist elsewhere, and give it to the build"
    CONTEXT = "take another context size"
    WHERE = "ask for more words, which show where"
    OTHER_DIRECTORY = "choose another directory"
    RESUME = "resume the training that is there"
    KNOWN_TOKENIZER = "start from a model whose tokenizer llama.cpp's converter knows"
    EVAL_DATA = "name the held-out texts"
    START_ANEW = "start a training instead of resuming one"
    BASE = "name the base model's directory"
    ALPHA = "name a text, or say what alpha is"

    def __call__(self, *values: object) -> Advice:
        """This way with its values."""
        return Advice(self, values)


@dataclass(frozen=True)
class Advice:
    """A way out with what it is about."""

    way: Way
    values: tuple[object, ...] = ()


class SherryError(ValueError):
    """Something given to sherry-gguf cannot be used as it is.

    saw   one line for a person: what was seen (file, tensor, row, group)
    ways  what can be done about it, the best first

    The message is both, with semicolons between. Command lines print it without a traceback, the ways as their own
    flags, and exit with status 1. What a name from a file would do to a terminal, line breaks too, is escaped.
    """

    def __init__(self, saw: str, *ways: Way | Advice) -> None:
        self.saw = saw
        self.ways = tuple(way if isinstance(way, Advice) else Advice(way) for way in ways)
        super().__init__(self.worded({}))

    def worded(self, flags: Mapping[Way, str]) -> str:
        """The message, with a way out as ``flags`` has it where that knows the way."""
        ways = (flags.get(advice.way, advice.way.value).format(*advice.values) for advice in self.ways)
        text = "; ".join((self.saw, *ways))
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def says_no_memory(error: Exception) -> bool:
    """Whether memory could not be had: PyTorch has no exception of its own for that."""
    said = ("can't allocate memory", "Cannot allocate memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(x in str(error) for x in said))


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Prefix the message of a SherryError raised inside with the file or tensor it is about."""
    try:
        yield
    except SherryError as error:
        raise type(error)(f"{what}: {error.saw}", *error.ways) from error
