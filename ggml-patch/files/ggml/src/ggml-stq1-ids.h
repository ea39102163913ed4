#pragma once

// Which type the id 42 of a GGUF file is.
//
// Upstream gave it to Q2_0, 64 weights in 18 bytes. The first files of type STQ1_0, 256 weights in 42 bytes, have it too.
// The bytes tell: a tensor ends where the next one begins, padded to the file's alignment, and the two readings of its
// shape differ. All tensors of a file are of one kind. What upstream's reader accepts stays Q2_0, unless all of them are
// so small, and the alignment so large, that nothing tells.
//
// Where nothing follows a tensor, upstream's reader takes any number of bytes beyond it. So blocks of a larger type whose
// id was changed would be read as a smaller one: a last tensor of this project's types has to end the file.

#include "ggml-impl.h"
#include "ggml-stq1.h"

#include <cinttypes>
#include <cstdint>
#include <vector>

// what a tensor takes, without and with padding
struct ggml_stq1_size {
    uint64_t bytes;
    uint64_t padded;

    ggml_stq1_size(const ggml_tensor & t, uint64_t block_weights, uint64_t block_bytes, uint64_t alignment) :
        bytes((uint64_t) ggml_nelements(&t)/block_weights*block_bytes), padded(GGML_PAD(bytes, alignment)) {}
};

static inline bool ggml_stq1_has_own_blocks(ggml_type type) {
    return type == GGML_TYPE_STQ1_0 || type == GGML_TYPE_SHERRY || type == GGML_TYPE_SHERRY_G32 ||
           type == GGML_TYPE_SHERRY_2P;
}

// Infos have a tensor t, its type and shape already checked, and an offset from the beginning of the data, where the
// reader stands. False, and a line in the log, if the file is neither.
template <typename Info, typename Reader>
static bool ggml_stq1_settle_ids(std::vector<Info> & infos, uint64_t alignment, const Reader & reader) {
    const auto has_byte = [&reader](uint64_t offset) { // what is not there ends a reader: a copy of it is asked
        Reader copy = reader;
        char byte;
        return offset <= UINT64_MAX - reader.tell() && copy.seek(reader.tell() + offset) && copy.read(byte);
    };

    size_t n_tensors = 0, n_stq1 = 0, n_q2 = 0, n_undecided = 0;
    bool   goes_on   = false; // the last tensor's bytes, beyond what STQ1_0 takes
    for (size_t i = 0; i < infos.size(); ++i) {
        const ggml_tensor & t = infos[i].t;
        if (t.type != GGML_TYPE_Q2_0 || ggml_nelements(&t) == 0) {
            continue;
        }
        ++n_tensors;
        const ggml_stq1_size q2(t, 64, 18, alignment), stq1(t, QK_STQ1_0, sizeof(block_stq1_0), alignment);
        const bool whole_blocks = t.ne[0]%QK_STQ1_0 == 0;
        if (i + 1 < infos.size()) {
            const uint64_t span = infos[i + 1].offset - infos[i].offset;
            if (whole_blocks && q2.padded == stq1.padded) {
                ++n_undecided;
            } else if (span == q2.padded) {
                ++n_q2;
            } else if (whole_blocks && span == stq1.padded) {
                ++n_stq1;
            } else {
                GGML_LOG_ERROR("%s: tensor '%s' of type 42 takes %" PRIu64 " bytes of the file: neither the %" PRIu64
                    " of Q2_0 nor the %" PRIu64 " of STQ1_0\n", __func__, t.name, span, q2.padded, stq1.padded);
                return false;
            }
        } else if (!whole_blocks) {
            ++n_q2;
        } else if (q2.padded == stq1.padded) {
            ++n_undecided;
        } else {
            // the end of a file may lack padding or have more bytes, and a file that is cut is the loader's business
            goes_on = has_byte(infos[i].offset + stq1.padded);
            if (!goes_on && n_q2 == 0 && has_byte(infos[i].offset + stq1.bytes - 1)) {
                ++n_stq1;
            } else if (n_stq1 == 0) {
                ++n_q2;
            }
        }
    }

    if (n_stq1 > 0 && (n_q2 > 0 || goes_on)) {
        GGML_LOG_ERROR("%s: of the tensors of type 42 some have the size of Q2_0, some of STQ1_0: damaged file\n", __func__);
        return false;
    }
    if (n_undecided == n_tensors && n_tensors > 0) {
        GGML_LOG_ERROR("%s: type 42 is Q2_0 or STQ1_0, and all tensors that have it are too small to tell\n", __func__);
        return false;
    }
    if (n_stq1 > 0) {
        GGML_LOG_INFO("%s: tensors of type 42 have the size of STQ1_0, which they are taken for: %zu\n", __func__, n_tensors);
        for (Info & info : infos) {
            // an empty tensor may have rows that are no whole blocks of STQ1_0: as that it could not be made
            if (info.t.type == GGML_TYPE_Q2_0 && info.t.ne[0]%QK_STQ1_0 == 0) {
                info.t.type  = GGML_TYPE_STQ1_0;
                info.t.nb[0] = sizeof(block_stq1_0);
                info.t.nb[1] = info.t.nb[0]*(info.t.ne[0]/QK_STQ1_0);
                info.t.nb[2] = info.t.nb[1]*info.t.ne[1];
                info.t.nb[3] = info.t.nb[2]*info.t.ne[2];
            }
        }
    }

    if (!infos.empty() && ggml_stq1_has_own_blocks(infos.back().t.type)) {
        const ggml_tensor & t = infos.back().t;
        const uint64_t size = GGML_PAD(ggml_nbytes(&t), alignment);
        if (infos.back().offset <= UINT64_MAX - size && has_byte(infos.back().offset + size)) {
            GGML_LOG_ERROR("%s: more bytes follow the last tensor, '%s', than the %" PRIu64 " of type %s: damaged file\n",
                __func__, t.name, size, ggml_type_name(t.type));
            return false;
        }
    }
    return true;
}
