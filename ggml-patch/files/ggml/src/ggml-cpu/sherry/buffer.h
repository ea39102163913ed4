#pragma once

#include "ggml-backend.h"

#ifdef __cplusplus
extern "C" {
#endif

// Memory for SHERRY, SHERRY_2P, STQ1_0 and SHERRY_G32 weights in tiles. They are read and written as the rows that a file
// has. SHERRY and SHERRY_2P take the room of those; a block of STQ1_0 becomes two of SHERRY, 44 bytes, not 42; rows of
// SHERRY_G32 are filled up to a multiple of 128 weights.
GGML_BACKEND_API ggml_backend_buffer_type_t ggml_backend_cpu_sherry_buffer_type(void);

#ifdef __cplusplus
}
#endif
