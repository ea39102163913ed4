#pragma once

#include "ggml-cpu-impl.h"
#include "ggml.h"

#include <cstddef>

namespace ggml::cpu::sherry {

// MUL_MAT and MUL_MAT_ID whose src0 is SHERRY, SHERRY_G32 or STQ1_0, src1 F32 with any strides. src0 is in tiles: of each matrix, its
// rows in tiles of 32, then those left over as rows of SHERRY (or SHERRY_G32) blocks. Or it is in rows as a file has them, and is packed
// into tiles as it is needed. Results are the same.

// bytes of params->wdata
size_t work_size(int n_threads, const ggml_tensor * op, bool in_tiles);

// all threads of a compute call this
void mul_mat(const ggml_compute_params * params, ggml_tensor * op, bool in_tiles);

}  // namespace ggml::cpu::sherry
