#pragma once

// What the loader and llama-quantize do for tensors of types SHERRY, SHERRY_G32, SHERRY_2P and STQ1_0.

#include "../ggml/src/ggml-sherry-2p.h"
#include "../ggml/src/ggml-sherry-g32.h"
#include "../ggml/src/ggml-stq1.h"
#include "ggml-backend.h"
#include "ggml.h"
#include "gguf.h"
#include "llama-impl.h"
#include "llama.h"

#include <cinttypes>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

static constexpr const char * LLAMA_SHERRY_VERSION_KEY = "sherry.format_version"; // u32, absent means 1
static constexpr uint32_t     LLAMA_SHERRY_VERSION     = 2; // 1: SHERRY, 2: SHERRY_G32 and SHERRY_2P

static inline bool llama_sherry_is_type(ggml_type type) {
    return type == GGML_TYPE_SHERRY || type == GGML_TYPE_SHERRY_G32 || type == GGML_TYPE_SHERRY_2P ||
           type == GGML_TYPE_STQ1_0;
}

// all linear layers of one type, embedding and output in Q8_0
static inline bool llama_sherry_is_ftype(llama_ftype ftype) {
    return ftype == LLAMA_FTYPE_MOSTLY_SHERRY || ftype == LLAMA_FTYPE_MOSTLY_SHERRY_G32 ||
           ftype == LLAMA_FTYPE_MOSTLY_SHERRY_2P || ftype == LLAMA_FTYPE_MOSTLY_STQ1_0;
}

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

// throws where rows are not whole blocks: a type asked for by name is not replaced, as one chosen by a mix is
static inline void llama_sherry_check_rows(const ggml_tensor * tensor, ggml_type type) {
    if (llama_sherry_is_type(type) && tensor->ne[0] % ggml_blck_size(type) != 0) {
        throw std::runtime_error(std::string(tensor->name) + " has rows of " + std::to_string(tensor->ne[0]) +
            " weights, and " + ggml_type_name(type) + "'s blocks have " + std::to_string(ggml_blck_size(type)) +
            ": choose another type for it");
    }
}

// Whether the matrices of layers that are not on a GPU are all in tiles (or in other layouts of the CPU's own), which are
// never lent to one for a long prompt. What is computed between them is not worth lending either: it costs two copies.
static inline bool llama_sherry_lends_no_matrix(const std::vector<std::pair<std::string, ggml_tensor *>> & tensors) {
    bool in_tiles = false;
    for (const auto & [name, tensor] : tensors) {
        if (name.rfind("blk.", 0) == 0 && tensor->type != GGML_TYPE_F32 && tensor->buffer) {
            if (ggml_backend_buffer_is_host(tensor->buffer)) {
                return false;
            }
            in_tiles = in_tiles || std::string(ggml_backend_buffer_name(tensor->buffer)) == "CPU_SHERRY";
        }
    }
    return in_tiles;
}

// groups of n weights that one of the types changes to what they are not
static inline int64_t llama_sherry_changed_groups(ggml_type type, const float * weights, int64_t n) {
    return type == GGML_TYPE_SHERRY ? ggml_sherry_changed_groups(weights, n) :
           type == GGML_TYPE_SHERRY_G32 ? ggml_sherry_g32_changed_groups(weights, n) :
           type == GGML_TYPE_STQ1_0 ? ggml_stq1_changed_groups(weights, n) : 0;
}

// throws where SHERRY_2P would round weights and nothing says which of them matter: such a file is of no use
static inline void llama_sherry_check_planes(const char * name, ggml_type type, bool has_imatrix, const float * weights,
                                             int64_t n) {
    const int64_t rounded = type == GGML_TYPE_SHERRY_2P && !has_imatrix ? ggml_sherry_2p_rounded_weights(weights, n) : 0;
    if (rounded > 0) {
        throw std::runtime_error(std::string(name) + ": " + std::to_string(rounded) + " of " + std::to_string(n) +
            " weights are no sums of two planes, and would be rounded: `sherry-gguf convert --calibrate` does that best, "
            "--imatrix less well");
    }
}

static inline void llama_sherry_warn_changed(const char * name, int64_t n_groups) {
    if (n_groups > 0) {
        LLAMA_LOG_WARN("%s: in %" PRId64 " groups of 4, zeros became weights (one of four is zero), or weights zeros "
            "(their scale is too small for fp16)\n", name, n_groups);
    }
}

// writes the version that the types of the output need, or removes the key if none of them needs one
template <typename T>
static void llama_sherry_set_version(gguf_context * ctx, const T & tensors) {
    uint32_t version = 0;
    for (const auto & tensor : tensors) {
        const uint32_t needed = tensor.target_type == GGML_TYPE_SHERRY_G32 || tensor.target_type == GGML_TYPE_SHERRY_2P ? 2 :
                                tensor.target_type == GGML_TYPE_SHERRY;
        version = needed > version ? needed : version;
    }
    if (version > 0) {
        gguf_set_val_u32(ctx, LLAMA_SHERRY_VERSION_KEY, version);
    } else {
        gguf_remove_key(ctx, LLAMA_SHERRY_VERSION_KEY);
    }
}
