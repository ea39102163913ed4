#include "ggml-sherry-2p.h"
#include "ggml-impl.h"

#include <assert.h>
#include <math.h>
#include <string.h>

// sums are those of sherry_gguf/weights/two_planes.py, bit by bit, also where a processor can fuse multiplying and adding
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize ("fp-contract=off")
#endif

static uint16_t get_d(const block_sherry * x) {
    return (uint16_t) (x->d[0] | x->d[1] << 8);
}

static void set_d(block_sherry * x, uint16_t d) {
    x->d[0] = d & 0xFF;
    x->d[1] = d >> 8;
}

// t: -1, 0 or 1, one 0 in every group. A scale of 0 makes the plane all zero bytes.
static void encode_plane(const int8_t * t, uint16_t d, block_sherry * y) {
    memset(y, 0, sizeof(*y));
    if (d == 0) {
        return;
    }
    for (int g = 0; g < SHERRY_GROUPS; ++g) {
        int zero = 0;
        int negative[4], n = 0; // one more than there should be
        for (int p = 0; p < 4; ++p) {
            if (t[4*g + p] == 0) {
                zero = p;
            } else {
                negative[n++] = t[4*g + p] < 0;
            }
        }
        assert(n == 3);
        const int index = zero << 2 | (negative[0] ^ negative[2]) << 1 | (negative[0] ^ negative[1]);

        y->qs[g%16]   |= (uint8_t) (index << (g < 16 ? 0 : 4));
        y->signs[g/8] |= (uint8_t) (negative[0] << g%8);
    }
    set_d(y, d);
}

struct planes {
    int8_t   t[SHERRY_2P_PLANES][QK_SHERRY_2P];
    uint16_t d[SHERRY_2P_PLANES];
};

static void encode(const struct planes * planes, block_sherry_2p * y) {
    for (int i = 0; i < SHERRY_2P_PLANES; ++i) {
        encode_plane(planes->t[i], planes->d[i], &y->plane[i]);
    }
}

static int8_t sign_of(float w) {
    return w < 0 ? -1 : 1;
}

//
// blocks that are two planes already: as sherry_gguf/formats/sherry_2p.py reads them off
//

// One magnitude, and one zero in every group, or zeros alone.
static bool is_one_plane(const float * w, float largest) {
    for (int g = 0; g < SHERRY_GROUPS; ++g) {
        int zeros = 0;
        for (const float * v = w + 4*g; v < w + 4*g + 4; ++v) {
            if (*v != 0 && fabsf(*v) != largest) {
                return false;
            }
            zeros += *v == 0;
        }
        if (zeros != 1 && largest != 0) {
            return false;
        }
    }
    return true;
}

// Whether the block is a*c0 + b*c1, a >= b, and such codes.
static bool read_off(const float * w, float a, float b, struct planes * out) {
    if (!isfinite(a) || !isfinite(b)) {
        return false;
    }
    for (int g = 0; g < SHERRY_GROUPS; ++g) {
        const float * v = w + 4*g;
        int found = -1; // 4*position of the first plane's zero + that of the second's
        for (int pair = 0; pair < 16 && found < 0; ++pair) {
            bool fits = true;
            for (int p = 0; p < 4 && fits; ++p) {
                const float m = fabsf(v[p]);
                const bool zero0 = p == pair/4, zero1 = p == pair%4;
                fits = zero0 && zero1 ? m == 0 : zero0 ? m == b : zero1 ? m == a : m == a + b || m == a - b;
            }
            found = fits ? pair : -1;
        }
        if (found < 0) {
            return false;
        }
        for (int p = 0; p < 4; ++p) {
            const int8_t sign = sign_of(v[p]);
            const bool   zero0 = p == found/4;
            out->t[0][4*g + p] = zero0 ? 0 : sign;
            out->t[1][4*g + p] = p == found%4 ? 0 : zero0 || fabsf(v[p]) == a + b ? sign : (int8_t) -sign;
        }
    }
    return true;
}

// false: the weights are no sums of two planes
static bool find_planes(const float * w, struct planes * out) {
    float magnitudes[5] = {0}; // the first are a + b, a, b, a - b, and one too many
    int n = 0;
    float largest = 0, second = 0;
    for (int i = 0; i < QK_SHERRY_2P; ++i) {
        const float m = fabsf(w[i]);
        bool known = m == 0;
        for (int j = 0; j < n; ++j) {
            known |= m == magnitudes[j];
        }
        if (!known && n < 5) {
            magnitudes[n++] = m;
        }
        largest = m > largest ? m : largest;
    }
    memset(out, 0, sizeof(*out));
    if (is_one_plane(w, largest)) {
        out->d[0] = GGML_FP32_TO_FP16(largest);
        for (int i = 0; i < QK_SHERRY_2P; ++i) {
            out->t[0][i] = w[i] == 0 ? 0 : sign_of(w[i]);
        }
        return (out->d[0] & 0x7C00) != 0x7C00 && (out->d[0] != 0 || largest == 0);
    }
    if (n > 4) {
        return false;
    }
    float least = largest;
    for (int j = 0; j < n; ++j) {
        second = magnitudes[j] < largest && magnitudes[j] > second ? magnitudes[j] : second;
        least  = magnitudes[j] < least ? magnitudes[j] : least;
    }
    // the largest is a + b, or a where there is no sum; another one is b, a, a - b or 0
    for (int i = 0; i < 2; ++i) {
        const float m = largest, y = i == 0 ? second : least;
        const float pairs[4][2] = { { m, y }, { m, m - y }, { y, m - y }, { m/2 + y/2, m/2 - y/2 } };
        for (int j = 0; j < 4; ++j) {
            const uint16_t d0 = GGML_FP32_TO_FP16(pairs[j][0]), d1 = GGML_FP32_TO_FP16(pairs[j][1]);
            out->d[0] = MAX(d0, d1); // in the order of the numbers: none is negative
            out->d[1] = MIN(d0, d1);
            if (read_off(w, GGML_FP16_TO_FP32(out->d[0]), GGML_FP16_TO_FP32(out->d[1]), out)) {
                return true;
            }
        }
    }
    return false;
}

//
// rounding: as sherry_gguf/weights/two_planes.py, step by step
//

// The codes that minimise sum(m*(w - a*c0 - b*c1)^2), group by group, and the sum. Each weight but the zeros' is the nearest of
// a + b and a - b; of the 16 pairs of zeros the one counts that costs least beyond that.
static double choose(const float * w, const double * m, double a, double b, struct planes * out) {
    double loss = 0;
    for (int g = 0; g < SHERRY_GROUPS; ++g) {
        double both[4], first[4], second[4], none[4];
        bool   same[4];
        for (int p = 0; p < 4; ++p) {
            const double v = (double) fabsf(w[4*g + p]), mp = m[4*g + p];
            const double sum = mp*((v - (a + b))*(v - (a + b)));
            const double difference = mp*((v - (a - b))*(v - (a - b)));
            same[p]   = sum <= difference;
            both[p]   = same[p] ? sum : difference;
            first[p]  = mp*((v - a)*(v - a)) - both[p];
            second[p] = mp*((v - b)*(v - b)) - both[p];
            none[p]   = mp*(v*v) - both[p];
        }
        int    best  = 0;
        double least = HUGE_VAL;
        for (int pair = 0; pair < 16; ++pair) {
            const double more = pair/4 == pair%4 ? none[pair/4] : second[pair/4] + first[pair%4];
            if (more < least) {
                least = more;
                best  = pair;
            }
        }
        loss += (both[0] + both[1]) + (both[2] + both[3]) + least;
        for (int p = 0; p < 4; ++p) {
            const int8_t sign  = sign_of(w[4*g + p]);
            const bool   zero0 = p == best/4;
            out->t[0][4*g + p] = zero0 ? 0 : sign;
            out->t[1][4*g + p] = p == best%4 ? 0 : zero0 || same[p] ? sign : (int8_t) -sign;
        }
    }
    return loss;
}

// The scales that minimise the sum for these codes, the larger one first, none below 0.
static void solve(const float * w, const double * m, const struct planes * planes, double * a, double * b) {
    double s00 = 0, s01 = 0, s11 = 0, r0 = 0, r1 = 0;
    for (int i = 0; i < QK_SHERRY_2P; ++i) {
        const double t0 = planes->t[0][i], t1 = planes->t[1][i], mw = m[i]*(double) w[i];
        s00 += m[i]*(t0*t0);
        s01 += m[i]*(t0*t1);
        s11 += m[i]*(t1*t1);
        r0  += mw*t0;
        r1  += mw*t1;
    }
    const double p = s00*s11, q = s01*s01;
    const double determinant = p - q;
    double x = 0, y = 0;
    if (determinant > 1e-6*p) {
        const double r0s11 = r0*s11, r1s01 = r1*s01, r1s00 = r1*s00, r0s01 = r0*s01;
        x = (r0s11 - r1s01)/determinant;
        y = (r1s00 - r0s01)/determinant;
    }
    if (!(x > 0 && y > 0)) { // one plane alone
        x = s00 > 0 && r0 > 0 ? r0/s00 : 0;
        y = 0;
    }
    *a = x > y ? x : y;
    *b = x > y ? y : x;
}

// The best planes seen so far, and those of another pair of scales beside them.
static void try_scales(const float * w, const double * m, double a, double b, struct planes * tried, struct planes * best,
                       double * least) {
    tried->d[0] = GGML_FP32_TO_FP16((float) a);
    tried->d[1] = GGML_FP32_TO_FP16((float) b);
    const double loss = choose(w, m, (double) GGML_FP16_TO_FP32(tried->d[0]), (double) GGML_FP16_TO_FP32(tried->d[1]), tried);
    if (loss < *least) {
        *least = loss;
        *best  = *tried;
    }
}

// importance: of each weight, or NULL; all zeros count as none
static void round_block(const float * w, const float * importance, block_sherry_2p * y) {
    double m[QK_SHERRY_2P], sum_m = 0, sum_square = 0;
    for (int i = 0; i < QK_SHERRY_2P; ++i) {
        m[i] = importance ? (double) importance[i] : 1;
        sum_m += m[i];
    }
    for (int i = 0; i < QK_SHERRY_2P; ++i) {
        if (!(sum_m > 0)) {
            m[i] = 1;
        }
        sum_square += m[i]*((double) w[i]*(double) w[i]);
    }
    const double size = sqrt(sum_square/(0.75*(sum_m > 0 ? sum_m : QK_SHERRY_2P))); // of a single plane

    static const double ratios[3] = { 1, 0.62, 0.36 }, sizes[2] = { 1, 0.8 };
    struct planes best, tried;
    memset(&best, 0, sizeof(best));
    best.d[0] = 0x7E00; // NaN, as SHERRY: for weights that are not finite, or too large for fp16
    double least = HUGE_VAL;
    for (int i = 0; i < 6 && size <= 65504; ++i) {
        double a = sizes[i%2]*size/sqrt(1 + ratios[i/2]*ratios[i/2]);
        double b = ratios[i/2]*a;
        for (int step = 0; step < 3; ++step) {
            try_scales(w, m, a, b, &tried, &best, &least);
            solve(w, m, &tried, &a, &b);
        }
    }
    for (int step = 0; step < 4 && isfinite(least); ++step) {
        double a, b;
        solve(w, m, step == 0 ? &best : &tried, &a, &b);
        try_scales(w, m, a, b, &tried, &best, &least);
    }
    if (isfinite(least)) {
        encode(&best, y);
    } else {
        memset(y, 0, sizeof(*y));
        set_d(&y->plane[0], best.d[0]);
    }
}

static void quantize_block(const float * w, const float * importance, block_sherry_2p * y) {
    struct planes planes;
    if (find_planes(w, &planes)) {
        encode(&planes, y);
    } else {
        round_block(w, importance, y);
    }
}

void quantize_row_sherry_2p_ref(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t k) {
    assert(k % QK_SHERRY_2P == 0);
    block_sherry_2p * blocks = y;

    for (int64_t i = 0; i < k/QK_SHERRY_2P; ++i) {
        quantize_block(x + i*QK_SHERRY_2P, NULL, blocks + i);
    }
}

size_t quantize_sherry_2p(const float * GGML_RESTRICT src, void * GGML_RESTRICT dst, int64_t nrows, int64_t n_per_row, const float * imatrix) {
    assert(n_per_row % QK_SHERRY_2P == 0);
    block_sherry_2p * y = dst;

    for (int64_t row = 0; row < nrows; ++row) {
        for (int64_t i = 0; i < n_per_row/QK_SHERRY_2P; ++i) { // whole blocks: dst has no room for another one
            quantize_block(src + row*n_per_row + i*QK_SHERRY_2P, imatrix ? imatrix + i*QK_SHERRY_2P : NULL, y++);
        }
    }
    return nrows*ggml_row_size(GGML_TYPE_SHERRY_2P, n_per_row);
}

int64_t ggml_sherry_2p_rounded_weights(const float * x, int64_t k) {
    int64_t rounded = 0;
    for (const float * w = x; w + QK_SHERRY_2P <= x + k; w += QK_SHERRY_2P) {
        struct planes planes;
        rounded += find_planes(w, &planes) ? 0 : QK_SHERRY_2P;
    }
    return rounded;
}

void dequantize_row_sherry_2p(const void * GGML_RESTRICT x, float * GGML_RESTRICT y, int64_t k) {
    assert(k % QK_SHERRY_2P == 0);
    const block_sherry_2p * blocks = x;

    for (int64_t i = 0; i < k/QK_SHERRY_2P; ++i) {
        const float d0 = GGML_FP16_TO_FP32(get_d(&blocks[i].plane[0]));
        const float d1 = GGML_FP16_TO_FP32(get_d(&blocks[i].plane[1]));

        int8_t w0[QK_SHERRY], w1[QK_SHERRY];
        ggml_sherry_decode(&blocks[i].plane[0], w0);
        ggml_sherry_decode(&blocks[i].plane[1], w1);
        for (int j = 0; j < QK_SHERRY; ++j) {
            y[i*QK_SHERRY + j] = w0[j]*d0 + w1[j]*d1; // the products are exact
        }
    }
}

bool ggml_validate_sherry_2p(const void * data, size_t nb) {
    return ggml_validate_sherry(data, SHERRY_2P_PLANES*nb);
}
