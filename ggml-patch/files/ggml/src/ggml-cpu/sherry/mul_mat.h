#pragma once

#include "ggml-cpu-impl.h"
#include "ggml.h"

#include <cstddef>

namespace ggml::cpu::sherry {

// MUL_MAT and MUL_MAT_ID whose src0 is SHERRY or STQ1_0 in tiles: of each matrix, its rows in tiles of 32, then those
// left over as rows of SHERRY blocks. src1 is F32 with any strides.

// bytes of params->wdata
size_t work_size(int n_threads, const ggml_tensor * op);

// all threads of a compute call this
void mul_mat(const ggml_compute_params * params, ggml_tensor * op);

}  // namespace ggml::cpu::sherry
