#pragma once

// The metadata key of files that hold tensors of type SHERRY.

#include "ggml.h"
#include "gguf.h"

#include <cinttypes>
#include <stdexcept>
#include <string>

static constexpr const char * LLAMA_SHERRY_VERSION_KEY = "sherry.format_version"; // u32, absent means 1
static constexpr uint32_t     LLAMA_SHERRY_VERSION     = 1;

// throws if the file was written for a later layout of the blocks
static inline void llama_sherry_check_version(const gguf_context * ctx) {
    const int64_t id = gguf_find_key(ctx, LLAMA_SHERRY_VERSION_KEY);
    if (id < 0) {
        return;
    }
    if (gguf_get_kv_type(ctx, id) != GGUF_TYPE_UINT32) {
        throw std::runtime_error(std::string(LLAMA_SHERRY_VERSION_KEY) + " is not a uint32: damaged file");
    }
    const uint32_t version = gguf_get_val_u32(ctx, id);
    if (version > LLAMA_SHERRY_VERSION) {
        throw std::runtime_error(std::string(LLAMA_SHERRY_VERSION_KEY) + " is " + std::to_string(version) +
            ", this program reads up to " + std::to_string(LLAMA_SHERRY_VERSION) + ": update it");
    }
}

// writes the key if a tensor of the output has type SHERRY, and removes it if none has
template <typename T>
static void llama_sherry_set_version(gguf_context * ctx, const T & tensors) {
    for (const auto & tensor : tensors) {
        if (tensor.target_type == GGML_TYPE_SHERRY) {
            gguf_set_val_u32(ctx, LLAMA_SHERRY_VERSION_KEY, LLAMA_SHERRY_VERSION);
            return;
        }
    }
    gguf_remove_key(ctx, LLAMA_SHERRY_VERSION_KEY);
}
