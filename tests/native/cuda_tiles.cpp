// Tiles of mul_mat_q for the processor: ggml-cuda/sherry-mmq.cuh in upstream's mmq.cuh, beside upstream's loader of Q8_0, whose
// bytes ours must write, and the whole kernel where it multiplies by dp4a. WARP, __CUDA_ARCH__ and the defines of common.cuh
// tell which GPU it is for.

#include "cuda_shims.h"

#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

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

struct uint2 { uint32_t x, y; };
struct uint3 { uint32_t x, y, z; };
static uint3 init_fastdiv_values(uint32_t d)      { return { 0, 0, d }; }
static uint32_t fastdiv(uint32_t n, uint3 d)      { return n/d.z; }
static uint32_t fastmodulo(uint32_t n, uint3 d)   { return n%d.z; }
static uint2 fast_div_modulo(uint32_t n, uint3 d) { return { n/d.z, n%d.z }; }

#define __global__
#define __launch_bounds__(...)
#define NO_DEVICE_CODE abort()
static thread_local uint2 threadIdx;
static uint3 blockIdx, gridDim;

// Memory that a block shares, by both names that the kernel has for it.
#define ids_dst_shared data_mul_mat_q
alignas(16) int data_mul_mat_q[1 << 14];

// of mma.cuh, which is not run here
enum data_layout { DATA_LAYOUT_I_MAJOR, DATA_LAYOUT_J_MAJOR };
template <int I_, int J_, typename T, data_layout layout = DATA_LAYOUT_I_MAJOR> struct tile {
    static constexpr int I = I_, J = J_, ne = 1;
    static int get_i(int) { return 0; }
    static int get_j(int) { return 0; }
};

// Upstream's up to where it starts kernels; of its loaders and products those of Q8_0 are there, and the names of the others
// (test_cuda.py sees to it).
#include "ggml-cuda/mmq.cuh"

// What the kernel does first. The loaders by themselves want it, too.
static void fill() {
    for (int thread = 0; thread < 64; ++thread) {
        sherry_fill_patterns(thread);
    }
}

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
    fill();
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

// The kernel itself, where products are made by dp4a: its threads are threads, its blocks run one after the other.

static struct {
    std::mutex mutex;
    std::condition_variable all_are_here;
    int threads, waiting, round;
} barrier;

static void wait_at_barrier() {
    std::unique_lock<std::mutex> lock(barrier.mutex);
    const int round = barrier.round;
    if (++barrier.waiting == barrier.threads) {
        barrier.waiting = 0;
        ++barrier.round;
        barrier.all_are_here.notify_all();
    } else {
        barrier.all_are_here.wait(lock, [&] { return barrier.round != round; });
    }
}

template <typename F>
static void launch(const uint3 grid, int nthreads, F kernel) {
    gridDim = grid;
    barrier.threads = nthreads;
    wait_for_others = wait_at_barrier;
    for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z) {
        for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) {
            for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
                std::vector<std::thread> threads;
                for (int t = 0; t < nthreads; ++t) {
                    threads.emplace_back([=] {
                        threadIdx = { uint32_t(t%WARP), uint32_t(t/WARP) };
                        kernel();
                    });
                }
                for (std::thread & thread : threads) {
                    thread.join();
                }
            }
        }
    }
    wait_for_others = [] {};
}

// dst[n][m] of n tokens; of experts, dst has the n rows that ids_dst says, and expert e those from bounds[e] to bounds[e + 1].
// blocks: of threads, where sums are made in parts.
template <ggml_type type, bool fallback>
static void product(const char * x, const int * y, float * dst, int m, int n, int k, int experts, const int * ids,
                    const int * bounds, int blocks) {
    constexpr int J = 16;
    constexpr ggml_cuda_mmq_config config = row_of<J, fallback>(type);
    const int ntx = (n + J - 1)/J, nty = (m + config.I - 1)/config.I, row = k/ggml_cuda_type_traits<type>::qk;
    std::vector<float> parts(blocks*J*config.I);
    std::fill_n(data_mul_mat_q, std::size(data_mul_mat_q), 0x55555555);
    std::fill_n(sherry_patterns(), 32, 0x55555555);

    const uint3 one = init_fastdiv_values(1), nrow = init_fastdiv_values(row), channels = init_fastdiv_values(experts);
    const uint3 tiles = { uint32_t(nty), uint32_t(ntx), uint32_t(experts) };
    const uint3 grid  = config.stream_k ? uint3{ uint32_t(blocks), 1, 1 } : tiles;
    launch(grid, config.nthreads, [&] {
        mul_mat_q<type, J, fallback>(x, y, ids, bounds, dst, parts.data(), nullptr, nrow, m, n, row, n, m,
            one, channels, m*row, 0, 0, one, one, 0, 0, 0, init_fastdiv_values(ntx));
    });
    if (config.stream_k) {
        launch({ uint32_t(blocks), uint32_t(config.I/WARP), 1 }, config.nthreads/2, [&] {
            mul_mat_q_stream_k_fixup<type, J, fallback>(ids, bounds, dst, parts.data(), nrow, m, n, m, channels, 0, one, 0,
                init_fastdiv_values(ntx));
        });
    }
}

extern "C" bool host_has_products() { return !row_of<16, false>(GGML_TYPE_Q8_0).use_mma_data_layout(); }
extern "C" bool host_has_parts()    { return row_of<16, false>(GGML_TYPE_Q8_0).stream_k; }

#define HOST_PRODUCT(name, type)                                                                                       \
    extern "C" void host_product_##name(const char * x, const int * y, float * dst, int m, int n, int k, int experts,  \
                                        const int * ids, const int * bounds, int blocks) {                             \
        if (m%128 == 0) {                                                                                              \
            product<type, false>(x, y, dst, m, n, k, experts, ids, bounds, blocks);                                    \
        } else {                                                                                                       \
            product<type, true>(x, y, dst, m, n, k, experts, ids, bounds, blocks);                                     \
        }                                                                                                              \
    }

HOST_PRODUCT(sherry,     GGML_TYPE_SHERRY)
HOST_PRODUCT(sherry_g32, GGML_TYPE_SHERRY_G32)
HOST_PRODUCT(stq1_0,     GGML_TYPE_STQ1_0)
