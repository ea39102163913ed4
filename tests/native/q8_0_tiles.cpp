// Q8_0 in tiles of 16 rows, for a test to call: with whatever instructions this is compiled for.

#define GGML_COMMON_DECL_CPP
#include "ggml-common.h"
#include "repack-q8_0-x86.h"

namespace q8_0 = ggml::cpu::repack_q8_0_x86;

extern "C" {

void repack(int64_t n_rows, int64_t n_blocks, const void * rows, void * tiles) {
    q8_0::repack(n_rows, n_blocks, (const block_q8_0 *) rows, (block_q8_0x16 *) tiles);
}

void gemv(int n, float * s, const void * tiles, const void * x, int nc) {
    q8_0::gemv(n, s, tiles, x, nc);
}

void gemm(int n, float * s, size_t bs, const void * tiles, const void * x, int nr, int nc) {
    q8_0::gemm(n, s, bs, tiles, x, nr, nc);
}

}
