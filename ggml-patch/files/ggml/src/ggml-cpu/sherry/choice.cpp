#include "ggml-impl.h"
#include "tile.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

// Which kernel tiles in memory are for. A tile has another layout for each, so one is chosen before the first tensor is
// read. Which one is the fastest does not follow from the instructions a processor has: what shuffles 32 words is one
// operation on some and two on others. So they are timed with a small matrix that stays in cache: 21 million products a
// kernel, 0.2 ms at 100 Gweights/s. A model reads its prompt some tokens at a time and writes one by one: the product of
// the two rates decides.
//
// The choice changes no result: all kernels give the same bits (tile.h). SHERRY_KERNEL=name in the environment overrides it.

namespace {

using kernel = ggml_sherry_tile_kernel;

constexpr int    N_TILES  = 4;
constexpr int    N_BLOCKS = 16;
constexpr int    TOKENS[] = { 1, SHERRY_MAX_TOKENS };
constexpr int    SAMPLES  = 16;
constexpr size_t ALIGN    = 64;

// a kernel's matrix and tables, which begin with a line of the cache as those of a model do, and the best time for each
// number of tokens so far
struct candidate {
    const kernel *    k;
    std::vector<char> room;
    char *            tiles;
    char *            tables;
    double            seconds[2] = { std::numeric_limits<double>::infinity(), std::numeric_limits<double>::infinity() };

    candidate(const kernel * k, const std::vector<block_sherry> & rows, const block_q8_sherry & x)
        : k(k), room(ALIGN + N_BLOCKS*(N_TILES*SHERRY_TILE_BYTES + k->table_bytes)) {
        tiles  = (char *) GGML_PAD((uintptr_t) room.data(), ALIGN);
        tables = tiles + N_BLOCKS*N_TILES*SHERRY_TILE_BYTES;
        for (int i = 0; i < N_TILES*N_BLOCKS; ++i) {
            const int tile = i/N_BLOCKS, block = i%N_BLOCKS;
            k->pack(&rows[tile*SHERRY_TILE_ROWS*N_BLOCKS + block], N_BLOCKS, tiles + i*SHERRY_TILE_BYTES);
        }
        for (int i = 0; i < N_BLOCKS; ++i) {
            k->tables(&x, tables + i*k->table_bytes);
        }
    }

    void time(int which) {
        static const float scales[N_BLOCKS] = {};
        float results[SHERRY_MAX_TOKENS][N_TILES*SHERRY_TILE_ROWS];

        const void *  of_tokens[SHERRY_MAX_TOKENS];
        const float * d[SHERRY_MAX_TOKENS];
        float *       dst[SHERRY_MAX_TOKENS];
        for (int t = 0; t < SHERRY_MAX_TOKENS; ++t) {
            of_tokens[t] = tables;
            d[t]         = scales;
            dst[t]       = results[t];
        }
        const auto start = std::chrono::steady_clock::now();
        for (int i = 0; i < N_TILES; i += k->max_tiles) {
            k->mul(std::min(k->max_tiles, N_TILES - i), N_BLOCKS*SHERRY_TILE_BYTES,
                   tiles + i*N_BLOCKS*SHERRY_TILE_BYTES, N_BLOCKS, 1, TOKENS[which], of_tokens, d, dst, true, false);
        }
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
        seconds[which] = std::min(seconds[which], took.count());
    }

    double rate(int which) const { // 10^9 weights times tokens per second
        return 1e-9*TOKENS[which]*N_TILES*SHERRY_TILE_ROWS*N_BLOCKS*QK_SHERRY/seconds[which];
    }

    std::string text() const {
        char out[128];
        snprintf(out, sizeof(out), "%s (%.0f and %.0f Gweights/s with 1 and %d tokens)", k->name, rate(0), rate(1), TOKENS[1]);
        return out;
    }
};

const kernel * asked_for() {
    const char * name = getenv("SHERRY_KERNEL");
    if (name == nullptr || *name == '\0') {
        return nullptr;
    }
    std::string names;
    for (size_t i = 0; const kernel * k = ggml_sherry_tile_kernel_at(i); ++i) {
        if (strcmp(k->name, name) == 0) {
            GGML_LOG_INFO("sherry: tiles for the kernel %s, as SHERRY_KERNEL says\n", name);
            return k;
        }
        names += std::string(i > 0 ? ", " : "") + k->name;
    }
    GGML_LOG_WARN("sherry: SHERRY_KERNEL=%s is none of %s, the fastest is taken\n", name, names.c_str());
    return nullptr;
}

const kernel * fastest() {
    std::vector<block_sherry> rows(N_TILES*SHERRY_TILE_ROWS*N_BLOCKS, block_sherry{});
    const block_q8_sherry x{};

    std::vector<candidate> candidates;
    for (size_t i = 0; const kernel * k = ggml_sherry_tile_kernel_at(i); ++i) {
        if (i == 0 || k != &ggml_sherry_tile_generic) { // which is no match for the others
            candidates.emplace_back(k, rows, x);
        }
    }
    if (candidates.size() > 1) {
        for (int i = 0; i < SAMPLES; ++i) { // they take turns: what else the machine does hits all alike
            for (auto & c : candidates) {
                c.time(0);
                c.time(1);
            }
        }
        std::sort(candidates.begin(), candidates.end(), [](const candidate & a, const candidate & b) {
            return a.rate(0)*a.rate(1) > b.rate(0)*b.rate(1);
        });
        std::string text = candidates[0].text();
        for (size_t i = 1; i < candidates.size(); ++i) {
            text += ", not " + candidates[i].text();
        }
        GGML_LOG_INFO("sherry: tiles for the kernel %s\n", text.c_str());
    } else {
        GGML_LOG_INFO("sherry: tiles for the kernel %s\n", candidates[0].k->name);
    }
    return candidates[0].k;
}

}  // namespace

const ggml_sherry_tile_kernel * ggml_sherry_chosen_tile_kernel(void) {
    static const kernel * const chosen = [] {
        const kernel * k = asked_for();
        return k ? k : fastest();
    }();
    return chosen;
}
