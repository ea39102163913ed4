"""Logits of two runtimes -> perplexity, KL divergence, agreement of the top token. NumPy, float64, chunk by chunk.

Scored as llama-perplexity does it: a text is cut into chunks of ``n_ctx`` tokens, each evaluated by itself, and of
each chunk the predictions from position n_ctx // 2 on count, so that every one of them has some context.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]

_SLICE_BYTES = 1 << 20  # of a float64 temporary: however large chunk and vocabulary are, it stays in the cache


def first_scored(n_ctx: int) -> int:
    """The first position of a chunk whose prediction counts; the last is n_ctx - 2, as it needs a next token."""
    return n_ctx // 2


def cut(tokens: I32, n_ctx: int, bos: int | None, limit: int | None = None) -> I32:
    """tokens int32[n] -> chunks int32[min(n // n_ctx, limit), n_ctx]; the rest of the text is dropped.

    ``bos``, where the model uses one, replaces the first token of each chunk, as llama-perplexity does.
    """
    n_chunks = len(tokens) // n_ctx
    if limit is not None:
        n_chunks = min(n_chunks, limit)
    chunks: I32 = tokens[: n_chunks * n_ctx].reshape(n_chunks, n_ctx).copy()
    if bos is not None:
        chunks[:, 0] = bos
    return chunks


def log_softmax(logits: F32) -> F64:
    """logits float32[n, n_vocab] -> log-probabilities float64[n, n_vocab], in nats."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


@dataclass(frozen=True)
class Divergence:
    """How far ``other`` is from ``base`` over ``positions`` predictions; ``_se`` are standard errors of the mean.

    base_perplexity, other_perplexity   exp(mean negative log-likelihood of the text)
    perplexity_ratio                    other / base; its error is that of the paired difference, far below either's
    kld_mean, kld_p999                  KL(base || other) in nats: mean and 99.9% quantile over positions
    same_top1                           share of positions where both rank the same token first, 0..1
    max_logit_difference                largest |other - base| over all logits
    """

    positions: int
    base_perplexity: float
    other_perplexity: float
    perplexity_ratio: float
    perplexity_ratio_se: float
    kld_mean: float
    kld_mean_se: float
    kld_p999: float
    same_top1: float
    same_top1_se: float
    max_logit_difference: float

    @property
    def perplexity_change(self) -> float:
        """other / base - 1, in percent."""
        return 100 * (self.perplexity_ratio - 1)


class Meter:
    """Collects chunks of logits of two runtimes; keeps four numbers per position, never the logits."""

    def __init__(self) -> None:
        self._columns: list[F64] = []
        self._max_difference = 0.0

    def add(self, base: F32, other: F32, targets: I32) -> None:
        """base, other float32[n, n_vocab]: logits at n positions; targets int32[n]: the tokens that did follow."""
        n, n_vocab = base.shape
        step = max(1, _SLICE_BYTES // (8 * n_vocab))
        for start in range(0, n, step):
            rows = slice(start, start + step)
            self._add_slice(base[rows], other[rows], targets[rows])

    def _add_slice(self, base: F32, other: F32, targets: I32) -> None:
        index = np.arange(len(targets))
        # a runtime that overflows is for the limits to fail, not for warnings
        with np.errstate(invalid="ignore"):
            p, q = log_softmax(base), log_softmax(other)
            kld = (np.exp(p) * (p - q)).sum(axis=1)
        same = base.argmax(axis=1) == other.argmax(axis=1)
        self._columns.append(np.stack([-p[index, targets], -q[index, targets], kld, same.astype(np.float64)]))
        # unlike max(), NumPy's keep a NaN
        difference = float(np.abs(other.astype(np.float64) - base).max())
        self._max_difference = float(np.maximum(self._max_difference, difference))

    def result(self) -> Divergence:
        """The figures over everything added so far."""
        base_nll, other_nll, kld, same = np.concatenate(self._columns, axis=1)
        n = len(kld)

        def standard_error(x: F64) -> float:
            return float(x.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan

        ratio = _exp((other_nll - base_nll).mean())
        return Divergence(
            positions=n,
            base_perplexity=_exp(base_nll.mean()),
            other_perplexity=_exp(other_nll.mean()),
            perplexity_ratio=ratio,
            perplexity_ratio_se=ratio * standard_error(other_nll - base_nll),
            kld_mean=float(kld.mean()),
            kld_mean_se=standard_error(kld),
            kld_p999=float(np.quantile(kld, 0.999)),
            same_top1=float(same.mean()),
            same_top1_se=standard_error(same),
            max_logit_difference=self._max_difference,
        )


def _exp(x: float) -> float:
    """e**x, infinite where that is beyond float64: the perplexity of a broken runtime."""
    with np.errstate(over="ignore"):
        return float(np.exp(x))
