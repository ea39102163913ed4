#pragma once

// Tiles of SHERRY, SHERRY_G32 and STQ1_0 for mul_mat_q: weights as bytes and scales as floats, in the places that a tile of
// Q8_0 has for them, so that its products serve. mmq.cuh includes this where it has defined what is used here.
//
// Weights are looked up in the table of sherry.cuh, which the kernel fills first. They are decoded again for each tile of tokens,
// and of few tokens that is most of the work: for 16 an iteration has 529 instructions by the table and 1009 by arithmetic
// (sm_90). The table is small beside a tile of 20000 bytes and more, which its 128 bytes leave aligned, and no two threads of a
// warp wait for each other in it.

template <ggml_type type> struct sherry_block_of;
template <> struct sherry_block_of<GGML_TYPE_SHERRY>     { typedef block_sherry     type; };
template <> struct sherry_block_of<GGML_TYPE_SHERRY_G32> { typedef block_sherry_g32 type; };
template <> struct sherry_block_of<GGML_TYPE_STQ1_0>     { typedef block_stq1_0     type; };

// A tile has 256 weights of a row: four groups for each of sixteen threads.
static constexpr int SHERRY_TILE_THREADS = 16;

// Where the groups of thread t lie in the table. x is the first block of the row's 256 weights.

// Groups g and g+1 of a block, and those half a block later, whose indices are in the same two bytes.
static __device__ __forceinline__ uint32_t sherry_tile_places(const block_sherry * x, const int t) {
    const int      g       = t%8*2;
    const uint32_t nibbles = sherry_load16(x[t/8].qs + g);
    const uint32_t low     = sherry_load16(x[t/8].signs)     >> g & 3;
    const uint32_t high    = sherry_load16(x[t/8].signs + 2) >> g & 3;
    return sherry_places(nibbles | nibbles << 12, low | high << 2);
}

static __device__ __forceinline__ uint32_t sherry_tile_places(const block_sherry_g32 * x, const int t) {
    const int      g       = t%2*2;
    const uint32_t nibbles = x[t/2].qs[g] | x[t/2].qs[g + 1] << 8;
    const uint32_t signs   = x[t/2].signs >> g;
    return sherry_places(nibbles | nibbles << 12, (signs & 3) | (signs >> 2 & 0xC));
}

// Groups 4*t to 4*t+3.
static __device__ __forceinline__ uint32_t sherry_tile_places(const block_stq1_0 * x, const int t) {
    const uint32_t nibbles = sherry_load16(x->qs + 2*t);
    const uint32_t pairs   = (nibbles | nibbles << 8) & 0x00FF00FF;
    return sherry_places(pairs | pairs << 4, x->sign[t/2] >> t%2*4);
}

// Those groups, written to the 64 integers of a row in the tile. Threads 8 to 15 begin with the other half of theirs: what the
// threads of two rows write at once then lies in 32 banks.

template <bool mma, int half_block>
static __device__ __forceinline__ void sherry_tile_write_pairs(const uint32_t places, const int t, int * row) {
    int * at = row + t/(half_block/2)*(2*half_block) + t%(half_block/2)*2;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
        const int half = n ^ t/8;
        const int2 pair = make_int2(sherry_look_up(places, 2*half), sherry_look_up(places, 2*half + 1));
        if constexpr (mma) {
            *(int2 *) (at + half*half_block) = pair; // rows are multiples of 16 bytes
        } else {
            at[half*half_block]     = pair.x;
            at[half*half_block + 1] = pair.y;
        }
    }
}

template <bool mma>
static __device__ __forceinline__ void sherry_tile_write(const block_sherry * x, const int t, int * row) {
    sherry_tile_write_pairs<mma, SHERRY_GROUPS/2>(sherry_tile_places(x, t), t, row);
}

template <bool mma>
static __device__ __forceinline__ void sherry_tile_write(const block_sherry_g32 * x, const int t, int * row) {
    sherry_tile_write_pairs<mma, SHERRY_G32_GROUPS/2>(sherry_tile_places(x, t), t, row);
}

// Transposed: an integer has one lane of four groups, and lanes lie 16 weights apart.
template <bool mma>
static __device__ __forceinline__ void sherry_tile_write(const block_stq1_0 * x, const int t, int * row) {
    const uint32_t places = sherry_tile_places(x, t);
    const int groups[4] = {
        sherry_look_up(places, 0), sherry_look_up(places, 1), sherry_look_up(places, 2), sherry_look_up(places, 3) };

    int * at = row + t/4*16 + t%4;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
        const int half  = n ^ t/8; // lanes 2*half and 2*half+1
        const int lanes = 0x5140 + half*0x2222;
        const int two   = __byte_perm(groups[0], groups[1], lanes);
        const int more  = __byte_perm(groups[2], groups[3], lanes);
        at[8*half]     = __byte_perm(two, more, 0x5410);
        at[8*half + 4] = __byte_perm(two, more, 0x7632);
    }
}

static __device__ __forceinline__ float sherry_tile_scale(const block_sherry_g32 * x) {
    return sherry_scale(x->d);
}

// Of the other two, whose size is even, in one load.
template <typename block>
static __device__ __forceinline__ float sherry_tile_scale(const block * x) {
    const uint16_t bits = sherry_load16(x->d);
    half scale;
    memcpy(&scale, &bits, sizeof(scale));
    return __half2float(scale);
}

template <ggml_type type, int J, bool fallback> static __device__ __forceinline__ void sherry_load_tiles(
        const char * __restrict__ x, int * __restrict__ x_tile, const int kbx0, const int i_max, const int stride) {
    typedef typename sherry_block_of<type>::type block;

    constexpr int  warp_size = ggml_cuda_get_physical_warp_size();
    constexpr int  nthreads  = ggml_cuda_mmq_get_nthreads(type, J, fallback);
    constexpr int  I         = ggml_cuda_mmq_get_I(type, J, fallback);
    constexpr bool mma       = ggml_cuda_mmq_get_config(type, J, fallback).use_mma_data_layout();

    // integers of a row, and floats with its scales: behind them, or behind all rows, where four rows are followed by a gap
    constexpr int row_qs = mma ? ggml_cuda_mmq_get_sram_stride(type, J, fallback) : 2*MMQ_TILE_NE_K + 1;
    constexpr int row_df = mma ? row_qs : 2*MMQ_TILE_NE_K/QI8_0;
    float * x_df = (float *) x_tile + (mma ? 2*MMQ_TILE_NE_K : mmq_get_dp4a_tile_x_sizes(GGML_TYPE_Q8_0, I).qs);

    const int thread = warp_size*threadIdx.y + threadIdx.x;

    constexpr int rows = nthreads/SHERRY_TILE_THREADS;
    static_assert(I%rows == 0, "a thread would write beyond the tile");
#pragma unroll
    for (int i0 = 0; i0 < I; i0 += rows) {
        int i = i0 + thread/SHERRY_TILE_THREADS;
        if (fallback) {
            i = min(i, i_max);
        }
        sherry_tile_write<mma>((const block *) x + kbx0 + i*stride, thread%SHERRY_TILE_THREADS, x_tile + i*row_qs);
    }

    constexpr int scales      = 2*MMQ_TILE_NE_K/QI8_0;
    constexpr int rows_scales = nthreads/scales;
    static_assert(I%rows_scales == 0, "a thread would write beyond the tile");
#pragma unroll
    for (int i0 = 0; i0 < I; i0 += rows_scales) {
        int i = i0 + thread/scales;
        if (fallback) {
            i = min(i, i_max);
        }
        const int kbx = thread%scales*QK8_0/ggml_cuda_type_traits<type>::qk;
        x_df[i*row_df + (mma ? 0 : i/(QI8_0/2)) + thread%scales] = sherry_tile_scale((const block *) x + kbx0 + i*stride + kbx);
    }
}

template <ggml_type type, int J, bool fallback>
static constexpr __device__ ggml_cuda_mmq_util_funcs sherry_mmq_util_funcs() {
    if constexpr (ggml_cuda_mmq_get_config(type, J, fallback).use_mma_data_layout()) {
        return ggml_cuda_mmq_util_funcs(
            -1,
            sherry_load_tiles<type, J, fallback>,
            ggml_cuda_mmq_vec_dot_q8_0_q8_1_mma<type, J, fallback, MMQ_Q8_1_DS_LAYOUT_D4>,
            ggml_cuda_mmq_write_back_mma<type, J, fallback>);
    } else {
        return ggml_cuda_mmq_util_funcs(
            VDR_Q8_0_Q8_1_MMQ,
            sherry_load_tiles<type, J, fallback>,
            ggml_cuda_mmq_vec_dot_q8_0_q8_1_dp4a<type, J, fallback>,
            ggml_cuda_mmq_write_back_dp4a<type, J, fallback>);
    }
}
