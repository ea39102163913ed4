#include "ggml-impl.h"
#include "many.h"
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
// the two rates decides. If there is a unit that multiplies many tokens by the tiles of the one that is chosen, that is
// used for them, once it has given the right bits and is faster (many.cpp).
//
// The choice changes no result: all kernels give the same bits (tile.h). SHERRY_KERNEL=name in the environment overrides it.

namespace {

using kernel = ggml_sherry_tile_kernel;
using ggml::cpu::sherry::fault_of_many;
using ggml::cpu::sherry::MANY_TIMED_TOKENS;
using ggml::cpu::sherry::rate_of_many;

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

    // of_many: the rate of a unit for many tokens, whose name it is then; or 0
    std::string text(const char * name, double of_many = 0) const {
        char out[128];
        const int n = snprintf(out, sizeof(out), "%s (%.0f and %.0f Gweights/s with 1 and %d tokens", name, rate(0), rate(1),
                               TOKENS[1]);
        if (of_many > 0) {
            snprintf(out + n, sizeof(out) - n, ", %.0f with %d", of_many, MANY_TIMED_TOKENS);
        }
        return out + std::string(")");
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
            const char * fault = k->many ? fault_of_many(k) : nullptr;
            if (fault) {
                GGML_LOG_WARN("sherry: SHERRY_KERNEL=%s: %s, the fastest is taken\n", name, fault);
                return nullptr;
            }
            GGML_LOG_INFO("sherry: tiles for the kernel %s, as SHERRY_KERNEL says\n", name);
            return k;
        }
        names += std::string(i > 0 ? ", " : "") + k->name;
    }
    GGML_LOG_WARN("sherry: SHERRY_KERNEL=%s is none of %s, the fastest is taken\n", name, names.c_str());
    return nullptr;
}

// the kernel that has the tiles of this one and a unit for many tokens, or nullptr
const kernel * with_many(const kernel * chosen) {
    for (size_t i = 0; const kernel * k = ggml_sherry_tile_kernel_at(i); ++i) {
        if (k->many && k->pack == chosen->pack) {
            return k;
        }
    }
    return nullptr;
}

// The chosen one, or that which multiplies many tokens better. said: what is said of them.
const kernel * best_for_many(const candidate & chosen, std::string & said) {
    said = chosen.text(chosen.k->name);
    const kernel * k = with_many(chosen.k);
    if (k == nullptr) {
        return chosen.k;
    }
    if (const char * fault = fault_of_many(k)) {
        said += std::string(", not ") + k->name + ": " + fault;
        return chosen.k;
    }
    const double rate = rate_of_many(k);
    if (rate > chosen.rate(1)) {
        said = chosen.text(k->name, rate);
        return k;
    }
    char slow[64];
    snprintf(slow, sizeof(slow), ", not %s: %.0f with %d", k->name, rate, MANY_TIMED_TOKENS);
    said += slow;
    return chosen.k;
}

const kernel * fastest() {
    std::vector<block_sherry> rows(N_TILES*SHERRY_TILE_ROWS*N_BLOCKS, block_sherry{});
    const block_q8_sherry x{};

    std::vector<candidate> candidates;
    for (size_t i = 0; const kernel * k = ggml_sherry_tile_kernel_at(i); ++i) {
        // the generic one is no match for the others; one with a unit for many tokens has the tiles of one without
        if (!k->many && (i == 0 || k != &ggml_sherry_tile_generic)) {
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
        std::string text;
        const kernel * best = best_for_many(candidates[0], text);
        for (size_t i = 1; i < candidates.size(); ++i) {
            text += ", not " + candidates[i].text(candidates[i].k->name);
        }
        GGML_LOG_INFO("sherry: tiles for the kernel %s\n", text.c_str());
        return best;
    }
    GGML_LOG_INFO("sherry: tiles for the kernel %s\n", candidates[0].k->name);
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
