// Tiles of mul_mat_q for the processor: ggml-cuda/sherry-mmq.cuh between what mmq.cuh has before and after it, and upstream's
// loader of Q8_0, whose bytes ours must write. WARP, __CUDA_ARCH__ and the defines of common.cuh tell which GPU it is for.

#include "cuda_shims.h"

#define GGML_COMMON_DECL_CUDA
#include "ggml-common.h"

// of common.cuh
#define GGML_UNUSED_VARS(...) (void) sizeof((__VA_ARGS__, 0))
#define GGML_CUDA_CC_DP4A  610
#define GGML_CUDA_CC_VOLTA 700
#define GGML_CUDA_CC_IS_AMD(cc)     (cc < 0)
#define GGML_CUDA_CC_IS_GCN(cc)     (cc == -1)
#define GGML_CUDA_CC_IS_CDNA(cc)    (cc == -2)
#define GGML_CUDA_CC_IS_RDNA4(cc)   (cc == -3)
#define GGML_CUDA_CC_IS_RDNA3_5(cc) (cc == -4)
#define GGML_CUDA_CC_IS_RDNA3(cc)   (cc == -5)
static int  ggml_cuda_highest_compiled_arch(int cc) { return cc; }
static bool blackwell_mma_available(int cc) { return cc >= 1200; }
static bool turing_mma_available(int cc)    { return cc >= 750; }
static bool amd_mfma_available(int cc)      { return cc == -2; }
static bool amd_wmma_available(int cc)      { return cc <= -3; }
static constexpr int ggml_cuda_get_physical_warp_size() { return WARP; }
using std::min;

static struct { int x, y; } threadIdx;

// of vecdotq.cuh, mma.cuh and mmq-vec-dot.cuh: named in what is included, and not called
#define VDR_Q8_0_Q8_1_MMQ 8
enum data_layout { DATA_LAYOUT_I_MAJOR, DATA_LAYOUT_J_MAJOR };
template <int I_, int J_, typename T, data_layout layout = DATA_LAYOUT_I_MAJOR> struct tile {
    static constexpr int I = I_, J = J_, ne = 1;
    static int get_i(int) { return 0; }
    static int get_j(int) { return 0; }
};
template <ggml_type type, int J, bool fallback>
static void ggml_cuda_mmq_vec_dot_q8_0_q8_1_dp4a(const int *, const int *, float *, const int) {}
template <ggml_type type, int J, bool fallback, int ds_layout>
static void ggml_cuda_mmq_vec_dot_q8_0_q8_1_mma(const int *, const int *, float *, const int) {}

// It ends where it has included sherry-mmq.cuh; of upstream's loaders it has that of Q8_0 (test_cuda.py sees to both).
#include "ggml-cuda/mmq.cuh"

static const bool filled = [] {
    for (int thread = 0; thread < 64; ++thread) {
        sherry_fill_patterns(thread);
    }
    return true;
}();

template <int J, bool fallback>
static constexpr ggml_cuda_mmq_config row_of(ggml_type type) {
    return ggml_cuda_mmq_get_config(type, J, fallback);
}

extern "C" int host_tile_rows() { return row_of<16, false>(GGML_TYPE_Q8_0).I; }

// in integers
extern "C" int host_tile_size() {
    constexpr ggml_cuda_mmq_config config = row_of<16, false>(GGML_TYPE_Q8_0);
    const tile_x_sizes dp4a = mmq_get_dp4a_tile_x_sizes(GGML_TYPE_Q8_0, config.I);
    return config.use_mma_data_layout() ? config.I*ggml_cuda_mmq_get_sram_stride(config.sram_layout) : dp4a.qs + dp4a.dm;
}

// All threads of a block, one after the other.
template <ggml_type type, int J, bool fallback>
static void run(ggml_cuda_mmq_load_tiles_t load, const void * x, int * tile, int kbx0, int i_max, int stride) {
    constexpr ggml_cuda_mmq_config config = row_of<J, fallback>(type);
    static_assert(config.type == GGML_TYPE_Q8_0 && config.I == row_of<16, false>(GGML_TYPE_Q8_0).I, "another row");
    for (threadIdx.y = 0; threadIdx.y < config.nthreads/WARP; ++threadIdx.y) {
        for (threadIdx.x = 0; threadIdx.x < WARP; ++threadIdx.x) {
            load((const char *) x, tile, kbx0, i_max, stride);
        }
    }
}

#define HOST(name, type, loader)                                                                                 \
    extern "C" void host_load_##name(const void * x, int * tile, int kbx0, int i_max, int stride, bool fallback) { \
        if (fallback) {                                                                                          \
            run<type, 16, true>(loader<type, 16, true>, x, tile, kbx0, i_max, stride);                           \
        } else {                                                                                                 \
            run<type, 16, false>(loader<type, 16, false>, x, tile, kbx0, i_max, stride);                         \
        }                                                                                                        \
    }

HOST(q8_0,       GGML_TYPE_Q8_0,       ggml_cuda_mmq_load_tiles_q8_0)
HOST(sherry,     GGML_TYPE_SHERRY,     sherry_load_tiles)
HOST(sherry_g32, GGML_TYPE_SHERRY_G32, sherry_load_tiles)
HOST(stq1_0,     GGML_TYPE_STQ1_0,     sherry_load_tiles)

// The rows of upstream's tables, for any GPU: those of Q8_0, and the layout of activations is its own too.
extern "C" int host_configs_that_differ(ggml_type type) {
    int differ = mmq_get_q8_1_ds_layout(type) != mmq_get_q8_1_ds_layout(GGML_TYPE_Q8_0);
    for (int cc : { -5, -4, -3, -2, -1, 600, 610, 700, 750, 800, 900, 1200 }) {
        for (int J = 8; J <= 128; J += 8) {
            for (bool fallback : { false, true }) {
                const ggml_cuda_mmq_config a = ggml_cuda_mmq_get_config(type, J, fallback, cc);
                const ggml_cuda_mmq_config b = ggml_cuda_mmq_get_config(GGML_TYPE_Q8_0, J, fallback, cc);
                differ += a.type != b.type || a.I != b.I || a.J != b.J || a.nthreads != b.nthreads || a.stream_k != b.stream_k ||
                    ggml_cuda_mmq_get_nbytes_shared_x(a, cc) != ggml_cuda_mmq_get_nbytes_shared_x(b, cc);
            }
        }
    }
    return differ;
}
