#include "many.h"

#include "ggml-impl.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

// A unit for many tokens is another part of the processor, which an emulator or a system may get wrong, and no model would
// say so: it has to give the generic kernel's bits before it is used. That is tried with every kind of tiles, with strips
// in pairs and one by itself, one of whose tokens are missing.

namespace ggml::cpu::sherry {

namespace {

using kernel = ggml_sherry_tile_kernel;

constexpr size_t ALIGN = 64;

struct aligned {
    std::vector<char> room;
    char *            data;

    explicit aligned(size_t size) : room(size + ALIGN) { data = (char *) GGML_PAD((uintptr_t) room.data(), ALIGN); }
};

// random matrix and activations of some blocks
struct problem {
    int n_tiles, n_blocks, n_planes, n_scales, n_tokens; // blocks of a tile

    std::vector<block_sherry>     rows; // one after the other
    std::vector<block_sherry_g32> rows_g32;
    std::vector<block_q8_sherry>  x;
    std::vector<float>            d;

    uint32_t state = 1;

    uint32_t bits() {
        state = state*1664525 + 1013904223;
        return state >> 16;
    }

    template <typename T> void fill(std::vector<T> & blocks) {
        for (auto & block : blocks) {
            auto * bytes = (uint8_t *) &block;
            std::generate(bytes, bytes + sizeof(block), [&] { return (uint8_t) bits(); });
            const auto scale = (uint16_t) (0x2000 + bits()%0x1000); // fp16 of 2^-7 to 2^-3
            memcpy(block.d, &scale, sizeof(scale));
        }
    }

    problem(int n_tiles, int n_blocks, int n_planes, int n_scales, int n_tokens)
        : n_tiles(n_tiles), n_blocks(n_blocks), n_planes(n_planes), n_scales(n_scales), n_tokens(n_tokens),
          rows(n_rows()*n_blocks), rows_g32(n_scales > 1 ? rows.size()*n_scales : 0), x(n_tokens*n_met()),
          d(x.size()*n_scales) {
        fill(rows);
        fill(rows_g32);
        for (auto & block : x) {
            std::generate(block.qs, block.qs + QK_SHERRY, [&] { return (int8_t) ((int) (bits()%255) - 127); });
        }
        std::generate(d.begin(), d.end(), [&] { return (float) (1 + bits())/0x10000; });
    }

    size_t n_rows()      const { return (size_t) n_tiles*SHERRY_TILE_ROWS; }
    size_t n_met()       const { return n_blocks/n_planes; } // blocks of activations of a token
    size_t tile_bytes()  const { return n_scales == 1 ? SHERRY_TILE_BYTES : SHERRY_G32_TILE_BYTES; }
    size_t tile_stride() const { return n_blocks*tile_bytes(); }

    void pack(const kernel * k, char * tiles) const {
        for (int i = 0; i < n_tiles*n_blocks; ++i) {
            const size_t first = (size_t) i/n_blocks*SHERRY_TILE_ROWS*n_blocks + i%n_blocks;
            if (n_scales == 1) {
                k->pack(&rows[first], n_blocks, tiles + i*tile_bytes());
            } else {
                const size_t row_blocks = (size_t) n_blocks*n_scales;
                const size_t first_g32  = (size_t) i/n_blocks*SHERRY_TILE_ROWS*row_blocks + (size_t) i%n_blocks*n_scales;
                ggml_sherry_pack_g32(k, &rows_g32[first_g32], row_blocks, n_scales, tiles + i*tile_bytes());
            }
        }
    }

    // results[token][row] by look-up, some tokens at a time
    std::vector<float> by_tables(const kernel * k) const {
        std::vector<float> results(n_tokens*n_rows());
        aligned tiles(n_tiles*tile_stride()), tables(n_met()*k->table_bytes);
        pack(k, tiles.data);
        for (int t = 0; t < n_tokens; ++t) {
            for (size_t b = 0; b < n_met(); ++b) {
                (n_scales == 1 ? k->tables : k->tables_g32)(&x[t*n_met() + b], tables.data + b*k->table_bytes);
            }
            for (int i = 0; i < n_tiles; ++i) {
                const void *  of_token = tables.data;
                const float * scales   = &d[t*n_met()*n_scales];
                float *       dst      = &results[t*n_rows() + (size_t) i*SHERRY_TILE_ROWS];
                (n_scales == 1 ? k->mul : k->mul_g32)(1, tile_stride(), tiles.data + i*tile_stride(), n_blocks, n_planes, 1,
                                                      &of_token, &scales, &dst, true, false);
            }
        }
        return results;
    }

    void arrange(const kernel * k, char * strips) const {
        const int n_strips = (n_tokens + SHERRY_STRIP_TOKENS - 1)/SHERRY_STRIP_TOKENS;
        for (size_t i = 0; i < n_met()*n_strips; ++i) {
            const size_t b = i/n_strips, first = i%n_strips*SHERRY_STRIP_TOKENS;
            const int    n = std::min(SHERRY_STRIP_TOKENS, n_tokens - (int) first);
            const block_q8_sherry * of_tokens[SHERRY_STRIP_TOKENS];
            const float *           scales[SHERRY_STRIP_TOKENS];
            for (int t = 0; t < n; ++t) {
                of_tokens[t] = &x[(first + t)*n_met() + b];
                scales[t]    = &d[((first + t)*n_met() + b)*n_scales];
            }
            k->many->arrange(of_tokens, scales, n_scales, n, strips + i*SHERRY_STRIP_BYTES(n_scales));
        }
    }

    // the same by the unit for many tokens; seconds, if asked for, are the best of some turns
    std::vector<float> by_strips(const kernel * k, int turns = 1, double * seconds = nullptr) const {
        std::vector<float> results(n_tokens*n_rows());
        aligned tiles(n_tiles*tile_stride());
        aligned strips(n_met()*((size_t) n_tokens/SHERRY_STRIP_TOKENS + 1)*SHERRY_STRIP_BYTES(n_scales));
        pack(k, tiles.data);
        arrange(k, strips.data);

        float * dst[SHERRY_MANY_TOKENS];
        for (int t = 0; t < n_tokens; ++t) {
            dst[t] = &results[t*n_rows()];
        }
        for (int i = 0; i < turns; ++i) {
            const auto start = std::chrono::steady_clock::now();
            k->many->mul(n_tiles, tile_stride(), tiles.data, n_blocks, n_planes, n_scales, n_tokens, strips.data, dst);
            const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
            if (seconds) {
                *seconds = std::min(*seconds, took.count());
            }
        }
        return results;
    }
};

bool is_right(const kernel * k, int n_planes, int n_scales) {
    const problem tried(1, 4, n_planes, n_scales, 3*SHERRY_STRIP_TOKENS - 5);
    const auto expected = tried.by_tables(&ggml_sherry_tile_generic), results = tried.by_strips(k);
    return memcmp(expected.data(), results.data(), expected.size()*sizeof(float)) == 0;
}

}  // namespace

const char * fault_of_many(const kernel * k) {
    if (!k->many->allowed()) {
        return "the system does not allow it";
    }
    if (!is_right(k, 1, 1) || !is_right(k, SHERRY_2P_PLANES, 1) || !is_right(k, 1, SHERRY_G32_SCALES)) {
        return "its results are wrong";
    }
    return nullptr;
}

double rate_of_many(const kernel * k) {
    const problem timed(4, 16, 1, 1, MANY_TIMED_TOKENS);
    double seconds = std::numeric_limits<double>::infinity();
    timed.by_strips(k, 16, &seconds);
    return 1e-9*timed.n_tokens*timed.n_rows()*timed.n_blocks*QK_SHERRY/seconds;
}

}  // namespace ggml::cpu::sherry
