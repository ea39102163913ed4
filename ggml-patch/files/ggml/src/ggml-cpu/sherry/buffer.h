#pragma once

#include "ggml-backend.h"

#ifdef __cplusplus
extern "C" {
#endif

// Memory for SHERRY weights in tiles. They take the room of the rows that a file has, and are read and written as such.
GGML_BACKEND_API ggml_backend_buffer_type_t ggml_backend_cpu_sherry_buffer_type(void);

#ifdef __cplusplus
}
#endif
