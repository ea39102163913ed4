#include "tile-avx512.h"

#if defined(SHERRY_ISA_AMX)

// Many tokens times tiles of pairs (tile-avx512vbmi.c) with AMX. tdpbssd multiplies 16 tokens x 64 activations by 64 weights
// x 16 rows, bytes with bytes. In the register of weights a dword is four of one row, which is a group, so that decoding is
// a look-up of dwords: vpermi2d reads the low five bits of each index, a code, and nothing is masked.
//
// For a block of 32 rows and a strip of 16 tokens tdpbssd takes 64 cycles, 16 each; storing the sums, and then the floats
// that they are added to, takes as many, and loading 72. So all three have to go on at the same time. A core does that as
// far as it sees ahead, which is about one pair of strips: what turns the sums of a pair into floats stands between the
// products of the next pair. Decoding a block takes about 100 cycles for all strips of a panel, eight at most; it stands
// before the products of the block ahead of it.
//
// A pair has four registers of sums, so that products do not wait for each other: tdpbssd's result takes 52 cycles. They
// leave no room for a block's weights, which are loaded for each pair from the first-level cache.
//
// Of SHERRY_G32 a product is of 32 weights, with registers that are half as deep, and takes as long.
//
//     weights    [half of a block][rows 0..15, 16..31][group][row][4]: a register is 1 KB
//     strip      [half of a block][token][64], and then the scales of activations, [scale][token]
//     sums       [strip][rows 0..15, 16..31][token][row]

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define TOKENS   SHERRY_STRIP_TOKENS
#define HALF     64   // bytes of half a block
#define REGISTER 1024 // bytes of a register of the matrix unit

// Of a system that keeps the registers for those only who ask: Linux does. It is asked once for all threads.
static bool allowed_amx(void) {
#if defined(SHERRY_AMX_EMULATED)
    return true;
#elif defined(__linux__) && defined(SYS_arch_prctl)
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return false;
#endif
}

static void arrange_amx(const block_q8_sherry * const * x, const float * const * d, int n_scales, int n_tokens, void * strip) {
    float * scales = (float *) ((uint8_t *) strip + 2*REGISTER);
    for (int t = 0; t < TOKENS; ++t) {
        int32_t groups[SHERRY_GROUPS] = { 0 };
        if (t < n_tokens) {
            groups_of_planes(x[t], groups);
        }
        for (int half = 0; half < 2; ++half) {
            memcpy((uint8_t *) strip + half*REGISTER + t*HALF, (const uint8_t *) groups + half*HALF, HALF);
        }
        for (int k = 0; k < n_scales; ++k) {
            scales[k*TOKENS + t] = t < n_tokens ? d[t][k] : 0;
        }
    }
}

//
// weights
//

typedef struct {
    int8_t weights[2][2][REGISTER];
    float  scales[SHERRY_G32_SCALES][SHERRY_TILE_ROWS];
} decoded;

#define SHIFT(j, b) _mm512_srli_epi16(x[j], b)

// n_scales is a constant. The weights ahead are asked for: a few tokens are multiplied faster than they come from memory.
INLINE void decode(const int n_scales, const uint8_t * tile, size_t ahead, decoded * out) {
    const __m512i sign0 = _mm512_loadu_si512(ggml_sherry_patterns);
    const __m512i sign1 = _mm512_sub_epi8(_mm512_setzero_si512(), sign0);
    for (size_t at = 0; at < ahead; at += 64) {
        _mm_prefetch((const char *) ((uintptr_t) tile + 4*ahead + at), _MM_HINT_T0);
    }
    for (int half = 0; half < 2; ++half) {
        __m512i x[5];
        EACH(j, 5) {
            x[j] = _mm512_loadu_si512((const __m512i *) tile + 5*half + j);
        }
        // of a pair of groups, a word for each row: the first group's code in the high byte, the second's in the low one
        const __m512i index[8] = {
            x[0], _mm512_xor_si512(SHIFT(0, 5), SHIFT(1, 3)), x[1], _mm512_xor_si512(SHIFT(1, 2), x[2]),
            _mm512_xor_si512(SHIFT(2, 3), SHIFT(3, 6)), x[3], _mm512_xor_si512(SHIFT(3, 5), SHIFT(4, 3)), x[4],
        };
        for (int pair = 0; pair < 8; pair += 2) {
            for (int rows = 0; rows < 2; ++rows) {
                const __m512i both = rows == 0 ? _mm512_unpacklo_epi16(index[pair], index[pair + 1])
                                               : _mm512_unpackhi_epi16(index[pair], index[pair + 1]);
                const __m512i codes[4] = {
                    _mm512_srli_epi32(both, 8), both, _mm512_srli_epi32(both, 24), _mm512_srli_epi32(both, 16),
                };
                EACH(g, 4) {
                    _mm512_store_si512(out->weights[half][rows] + 64*(2*pair + g),
                                       _mm512_permutex2var_epi32(sign0, codes[g], sign1));
                }
            }
        }
    }
    EACH(k, n_scales) {
        __m512 of_rows[2];
        load_scales(tile + SHERRY_TILE_SCALES, k, of_rows);
        _mm512_store_ps(out->scales[k],      of_rows[0]);
        _mm512_store_ps(out->scales[k] + 16, of_rows[1]);
    }
}

//
// products
//

// sums that the matrix unit made, of a strip or of a pair of them, and the results that they are to be added to
typedef struct {
    int             n_strips; // 0: none
    const int32_t * sums;
    const float *   d[2];
    __m512          scales[2];
    float *         out; // [token][32 rows]
} pending;

// n tokens of it; this order of multiplying and rounding is that of all kernels
INLINE void finish(const pending * p, int first, const int n) {
    EACH(i, n) {
        const int     t   = first + i;
        const __m512  d   = _mm512_set1_ps(p->d[t/TOKENS][t%TOKENS]);
        const int32_t * sums = p->sums + t/TOKENS*2*TOKENS*16 + t%TOKENS*16;
        EACH(rows, 2) {
            float * out = p->out + t*SHERRY_TILE_ROWS + 16*rows;
            const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + rows*TOKENS*16));
            _mm512_store_ps(out, _mm512_fmadd_ps(sum, _mm512_mul_ps(p->scales[rows], d), _mm512_load_ps(out)));
        }
    }
}

// What gcc has for the matrix unit does not say which memory it reads, and nothing must move past what it stands between.
#if defined(__GNUC__)
#define IN_ORDER __asm__ volatile("" ::: "memory")
#else
#define IN_ORDER
#endif
#define LOAD(number, from, stride) \
    IN_ORDER;                      \
    _tile_loadd(number, from, stride)
#define STORE(number, to)         \
    _tile_stored(number, to, 64); \
    IN_ORDER

// a product, and beside it some of the tokens that are pending
#define DOT(sums, x, w)                   \
    _tile_dpbssd(sums, x, w);             \
    IN_ORDER;                             \
    finish(before, n_finished, n_beside); \
    n_finished += n_beside;               \
    IN_ORDER

// n_strips strips, 1 or 2, times the weights of one scale, depth parts of them one after the other, sums to memory; what is
// pending is finished. n_strips, n_pending and depth are constants.
INLINE void multiply_strips(const int n_strips, const int n_pending, const int depth, const uint8_t * const x[2],
                            const int8_t * weights, const pending * before, int32_t * sums) {
    const int n_beside = n_pending*TOKENS/(depth*n_strips*2);
    int n_finished = 0;
    // registers 0 to 3 are sums, of the first strip with rows 0..15 and 16..31 and of the second; 4 and 5 are activations
    _tile_zero(0);
    _tile_zero(1);
    if (n_strips == 2) {
        _tile_zero(2);
        _tile_zero(3);
    }
    EACH(k, depth) {
        LOAD(6, weights + 2*k*REGISTER, 64);
        LOAD(4, x[0] + k*REGISTER, HALF);
        DOT(0, 4, 6);
        LOAD(7, weights + (2*k + 1)*REGISTER, 64);
        DOT(1, 4, 7);
        if (n_strips == 2) {
            LOAD(5, x[1] + k*REGISTER, HALF);
            DOT(2, 5, 6);
            DOT(3, 5, 7);
        }
    }
    STORE(0, sums);
    STORE(1, sums + 256);
    if (n_strips == 2) {
        STORE(2, sums + 512);
        STORE(3, sums + 768);
    }
}

// the same with n_strips and n_pending that are known now only
INLINE void multiply_strips_of(int n_strips, const int depth, const uint8_t * const x[2], const int8_t * weights,
                               const pending * before, int32_t * sums) {
    switch (3*n_strips + before->n_strips) {
        case 3: multiply_strips(1, 0, depth, x, weights, before, sums); break;
        case 4: multiply_strips(1, 1, depth, x, weights, before, sums); break;
        case 5: multiply_strips(1, 2, depth, x, weights, before, sums); break;
        case 6: multiply_strips(2, 0, depth, x, weights, before, sums); break;
        case 7: multiply_strips(2, 1, depth, x, weights, before, sums); break;
        case 8: multiply_strips(2, 2, depth, x, weights, before, sums); break;
    }
}

// a thread's, in the first-level cache but for the results of the longest panels
typedef struct {
    decoded blocks[2];
    int32_t sums[2*2*TOKENS*16]; // of a pair of strips: those before are finished when they come
    float   out[SHERRY_MANY_TOKENS][SHERRY_TILE_ROWS];
} room;

// one tile; n_scales is a constant
INLINE void multiply_tile(const int n_scales, const uint8_t * tile, int n_blocks, int n_planes, int n_strips,
                          const uint8_t * strips, room * r) {
    const size_t tile_bytes  = SHERRY_TILE_SCALES + n_scales*2*SHERRY_TILE_ROWS;
    const size_t strip_bytes = SHERRY_STRIP_BYTES(n_scales);

    memset(r->out, 0, n_strips*TOKENS*sizeof(r->out[0]));
    pending before = { 0 };
    decode(n_scales, tile, tile_bytes, r->blocks);
    for (int b = 0; b < n_blocks; ++b) {
        const decoded * block = r->blocks + b%2;
        if (b + 1 < n_blocks) {
            decode(n_scales, tile + (b + 1)*tile_bytes, tile_bytes, r->blocks + (b + 1)%2);
        }
        const uint8_t * of_block = strips + (size_t) ggml_sherry_met_block(b, n_planes)*n_strips*strip_bytes;
        for (int s = 0; s < n_strips; s += 2) {
            for (int k = 0; k < n_scales; ++k) {
                // of SHERRY_G32 a quarter of the block: half of each row of a register of activations, the upper or the
                // lower half of one of weights
                const int half = n_scales == 1 ? 0 : k/2, within = n_scales == 1 ? 0 : k%2;
                const uint8_t * first  = of_block + s*strip_bytes;
                const uint8_t * second = s + 1 < n_strips ? first + strip_bytes : first;
                const uint8_t * x[2] = {
                    first  + half*REGISTER + within*HALF/2,
                    second + half*REGISTER + within*HALF/2,
                };
                pending now = { .n_strips = s + 1 < n_strips ? 2 : 1, .sums = r->sums, .out = r->out[s*TOKENS] };
                const int8_t * weights = block->weights[half][0] + within*REGISTER/2;
                multiply_strips_of(now.n_strips, n_scales == 1 ? 2 : 1, x, weights, &before, r->sums);
                now.d[0] = (const float *) (first  + 2*REGISTER) + k*TOKENS;
                now.d[1] = (const float *) (second + 2*REGISTER) + k*TOKENS;
                now.scales[0] = _mm512_load_ps(block->scales[k]);
                now.scales[1] = _mm512_load_ps(block->scales[k] + 16);
                before = now;
            }
        }
    }
    for (int t = 0; t < before.n_strips*TOKENS; t += 8) {
        finish(&before, t, 8);
    }
}

typedef struct { // ldtilecfg's operand
    uint8_t  palette, start_row, unused[14];
    uint16_t row_bytes[16];
    uint8_t  rows[16];
} configuration;

// Of the registers: sums, activations, weights. They are constants, because gcc sees no more than the first bytes being
// read, and would leave out writing the others.
static const configuration whole_blocks = {
    .palette = 1, .row_bytes = { 64, 64, 64, 64, 64, 64, 64, 64 }, .rows = { 16, 16, 16, 16, 16, 16, 16, 16 },
};
static const configuration quarters = {
    .palette = 1, .row_bytes = { 64, 64, 64, 64, 32, 32, 64, 64 }, .rows = { 16, 16, 16, 16, 16, 16, 8, 8 },
};

static void mul_amx(int n_tiles, size_t tile_stride, const void * tiles, int n_blocks, int n_planes, int n_scales, int n_tokens,
                    const void * strips, float * const * dst) {
    // others configure a thread's registers once, and rely on it
    _Alignas(64) configuration others;
    _tile_storeconfig(&others);
    IN_ORDER;
    _tile_loadconfig(n_scales == 1 ? &whole_blocks : &quarters);

    _Alignas(64) room r;
    const int n_strips = (n_tokens + TOKENS - 1)/TOKENS;
    for (int i = 0; i < n_tiles; ++i) {
        const uint8_t * tile = (const uint8_t *) tiles + (size_t) i*tile_stride;
        if (n_scales == 1) {
            multiply_tile(1, tile, n_blocks, n_planes, n_strips, strips, &r);
        } else {
            multiply_tile(SHERRY_G32_SCALES, tile, n_blocks, n_planes, n_strips, strips, &r);
        }
        for (int t = 0; t < n_tokens; ++t) {
            memcpy(dst[t] + SHERRY_TILE_ROWS*i, r.out[t], sizeof(r.out[t]));
        }
    }
    IN_ORDER;
    if (others.palette == 0) {
        _tile_release();
    } else {
        _tile_loadconfig(&others);
    }
}

const struct ggml_sherry_many ggml_sherry_many_amx = {
    .allowed = allowed_amx,
    .arrange = arrange_amx,
    .mul     = mul_amx,
};

#endif
