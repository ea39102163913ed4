#include "mul_mat.h"

#include "ggml-impl.h"
#include "row.h"
#include "tile.h"

#include <algorithm>
#include <cstring>

// How the work is shared.
//
// A panel is some rows of src1 that are multiplied with the same matrix. Threads take parts of panels, some tiles each,
// until none is left.
//
// Tables pay off where many rows use them. With few tokens the rows are shared among threads, so the tables of all
// tokens are made beforehand, by all threads together. With many tokens that would be megabytes: there, a part is a
// panel of eight tokens with all the rows, and each thread makes its own tables, of some blocks at a time, so that they
// stay in its second-level cache.
//
// Where the kernel has a unit for many tokens (tile.h), that takes panels of up to 128, whose activations are arranged
// beforehand, by all threads together. Decoding the weights takes as long as looking up the sums of a few tokens, so
// that panels of less than eight, as an expert may have, go the other way.
//
// Weights that lie in rows are packed into tiles as they are needed, a few blocks at a time, which stay in the first-level
// cache. Packing takes nearly as long as multiplying with one token, and together that is about as fast as TQ2_0's vec_dot
// is; a vec_dot of SHERRY has to unpack five bits for each row, and is not. With few tokens weights come from memory, and no
// processor foresees a walk along 32 rows at once: the next tile's rows, which lie one after the other, are asked for.

namespace ggml::cpu::sherry {

namespace {

constexpr int64_t FEW          = 16; // tokens whose tables are made beforehand
constexpr int64_t PANEL_TOKENS = 8;  // otherwise: tokens of a panel
constexpr int64_t RUN_BLOCKS   = 16; // otherwise: blocks whose tables a thread makes at a time
constexpr int64_t PACK_BLOCKS  = 4;  // of rows, that are packed at a time for few tokens: whole blocks of STQ1_0
constexpr int64_t PARTS        = 4;  // otherwise: per thread at least, so that a slow thread does not hold up the others
constexpr int64_t LEAST_MANY   = 8;  // tokens of a panel that a unit for many tokens is worth while for
constexpr size_t  CACHE_LINE   = 64;

#if defined(__GNUC__)
#define PREFETCH(address) __builtin_prefetch((const void *) (address), 0, 2) // to the second-level cache
#else
#define PREFETCH(address) GGML_UNUSED(address)
#endif

struct token {
    int64_t row; // of the quantized activations
    float * dst;
};

struct panel {
    const char * weights;
    int64_t first; // token
    int64_t count;
    char *  strips; // for a unit for many tokens, its activations; otherwise nullptr

    int64_t n_strips() const { return (count + SHERRY_STRIP_TOKENS - 1)/SHERRY_STRIP_TOKENS; }
};

template <typename T> T * at(const ggml_tensor * t, int64_t i0, int64_t i1, int64_t i2 = 0, int64_t i3 = 0) {
    return (T *) ((char *) t->data + i0*t->nb[0] + i1*t->nb[1] + i2*t->nb[2] + i3*t->nb[3]);
}

struct counts {
    int64_t panels;
    int64_t strips;
};

// Everything about one operation, and where its parts lie in wdata.
struct plan {
    const ggml_tensor * weights;
    const ggml_tensor * x;
    const ggml_tensor * ids; // nullptr for MUL_MAT
    ggml_tensor *       dst;

    bool in_tiles; // weights, or in rows

    const ggml_sherry_tile_kernel * kernel;
    const ggml_sherry_many *        many; // that there are enough tokens for, or nullptr

    bool   g32;        // SHERRY_G32: four scales in a block, and rows that end inside one
    int    n_scales;   // of a row in a block, and of activations
    int    n_planes;   // blocks of a tile that meet the same activations
    size_t tile_bytes; // of 128 weights of 32 rows

    int64_t n_blocks; // of a row, of 128 weights
    int64_t n_tiles;  // of a matrix
    int64_t n_rows;   // of activations
    int64_t n_tokens; // columns of results
    int64_t max_panels;
    bool    few;
    size_t  row_bytes; // of weights, as they are kept

    size_t size = 0;
    size_t q8, q8_g32, d, tokens, panels, counts, tables, packed, strips; // offsets

    plan(int n_threads, ggml_tensor * op, bool in_tiles)
        : weights(op->src[0]), x(op->src[1]), ids(op->src[2]), dst(op), in_tiles(in_tiles) {
        kernel     = in_tiles ? ggml_sherry_chosen_tile_kernel() : ggml_sherry_packing_tile_kernel();
        g32        = weights->type == GGML_TYPE_SHERRY_G32;
        n_scales   = g32 ? SHERRY_G32_SCALES : 1;
        n_planes   = weights->type == GGML_TYPE_SHERRY_2P ? SHERRY_2P_PLANES : 1;
        tile_bytes = g32 ? SHERRY_G32_TILE_BYTES : n_planes*SHERRY_TILE_BYTES;
        n_blocks   = (weights->ne[0] + QK_SHERRY - 1)/QK_SHERRY;
        row_bytes  = in_tiles ? n_blocks*tile_bytes/SHERRY_TILE_ROWS : weights->nb[1];
        n_tiles    = weights->ne[1]/SHERRY_TILE_ROWS;
        n_rows     = ggml_nrows(x);
        n_tokens   = ids ? ggml_nelements(ids) : n_rows;
        // how many tokens an expert has is not known yet; few ones are most likely those of as many experts
        many       = n_rows > FEW || (!ids && x->ne[1] >= LEAST_MANY) ? kernel->many : nullptr;
        few        = n_rows <= FEW && many == nullptr;
        max_panels = ids ? n_tokens/PANEL_TOKENS + std::min(n_tokens, weights->ne[2])
                         : x->ne[2]*x->ne[3]*((x->ne[1] + PANEL_TOKENS - 1)/PANEL_TOKENS);

        q8       = take(n_rows*n_blocks*sizeof(block_q8_sherry));
        q8_g32   = take(g32 ? n_rows*n_blocks*n_scales*sizeof(block_q8_sherry_g32) : 0);
        d        = take(n_rows*n_blocks*n_scales*sizeof(float));
        tokens   = take(n_tokens*sizeof(token));
        panels   = take(max_panels*sizeof(panel));
        counts   = take(sizeof(struct counts));
        tables   = take((few ? n_rows*n_blocks : n_threads*PANEL_TOKENS*RUN_BLOCKS)*kernel->table_bytes);
        packed   = take(in_tiles ? 0 : n_threads*packed_bytes());
        strips   = take(many ? max_strips()*n_blocks*strip_bytes() : 0);
    }

    size_t packed_bytes() const { return kernel->max_tiles*RUN_BLOCKS*tile_bytes; }
    size_t strip_bytes() const { return SHERRY_STRIP_BYTES(n_scales); } // of a block

    // the last one of a matrix may have less than its 16 tokens
    int64_t max_strips() const {
        return ids ? n_tokens/SHERRY_STRIP_TOKENS + std::min(n_tokens, weights->ne[2])
                   : x->ne[2]*x->ne[3]*((x->ne[1] + SHERRY_STRIP_TOKENS - 1)/SHERRY_STRIP_TOKENS);
    }

    const char * matrix(int64_t i2, int64_t i3 = 0) const {
        return in_tiles ? (const char *) weights->data + (i3*weights->ne[2] + i2)*weights->ne[1]*row_bytes
                        : at<const char>(weights, 0, 0, i2, i3);
    }

    size_t take(size_t bytes) {
        const size_t offset = size;
        size += GGML_PAD(bytes, CACHE_LINE);
        return offset;
    }
};

// What one thread sees of it.
struct worker {
    const plan & p;
    const int    ith;
    const int    nth;

    char * base;

    worker(const plan & p, const ggml_compute_params * params) : p(p), ith(params->ith), nth(params->nth) {
        base = (char *) GGML_PAD((uintptr_t) params->wdata, CACHE_LINE);
        GGML_ASSERT(params->wsize >= p.size + CACHE_LINE);
    }

    block_q8_sherry * q8(int64_t row, int64_t block) const {
        return (block_q8_sherry *) (base + p.q8) + row*p.n_blocks + block;
    }
    block_q8_sherry_g32 * q8_g32(int64_t row, int64_t block) const {
        return (block_q8_sherry_g32 *) (base + p.q8_g32) + (row*p.n_blocks + block)*SHERRY_G32_SCALES;
    }
    float   * d(int64_t row) const { return (float *) (base + p.d) + row*p.n_blocks*p.n_scales; }
    token   * tokens()   const { return (token *)   (base + p.tokens); }
    panel   * panels()   const { return (panel *)   (base + p.panels); }
    int64_t & n_panels() const { return ((counts *) (base + p.counts))->panels; }
    int64_t & n_strips() const { return ((counts *) (base + p.counts))->strips; }

    char * shared_tables(int64_t row, int64_t block) const {
        return base + p.tables + (row*p.n_blocks + block)*p.kernel->table_bytes;
    }
    char * own_tables(int64_t i) const {
        return base + p.tables + (ith*PANEL_TOKENS + i)*RUN_BLOCKS*p.kernel->table_bytes;
    }
    char * own_packed() const { return base + p.packed + ith*p.packed_bytes(); }

    // activations of a block, n of which are there; their scales to d
    void quantize_block(const float * values, int64_t n, int64_t row, int64_t block) const {
        block_q8_sherry * q = q8(row, block);
        float * scales = d(row) + block*p.n_scales;
        if (!p.g32) {
            (p.weights->type == GGML_TYPE_STQ1_0 ? quantize_row_q8_stq1_0 : quantize_row_q8_sherry)(values, q, n);
            scales[0] = q->d;
            return;
        }
        block_q8_sherry_g32 * parts = q8_g32(row, block);
        quantize_row_q8_sherry_g32(values, parts, n);
        memset(q->qs, 0, sizeof(q->qs));
        for (int k = 0; k < SHERRY_G32_SCALES; ++k) {
            scales[k] = 0;
            if (k < n/QK_SHERRY_G32) {
                scales[k] = parts[k].d;
                for (int plane = 0; plane < 4; ++plane) { // 8 groups of 32
                    memcpy(q->qs + plane*SHERRY_GROUPS + k*SHERRY_G32_GROUPS, parts[k].qs + plane*SHERRY_G32_GROUPS,
                           SHERRY_G32_GROUPS);
                }
            }
        }
    }

    void make_tables(int64_t row, int64_t block, void * tables) const {
        (p.g32 ? p.kernel->tables_g32 : p.kernel->tables)(q8(row, block), tables);
    }

    // this thread's share of the activations
    void quantize() const {
        const ggml_tensor * x = p.x;
        const int64_t n = p.n_rows*p.n_blocks;
        for (int64_t i = n*ith/nth; i < n*(ith + 1)/nth; ++i) {
            const int64_t row = i/p.n_blocks, block = i%p.n_blocks;
            const int64_t i1 = row%x->ne[1], i2 = row/x->ne[1]%x->ne[2], i3 = row/x->ne[1]/x->ne[2];
            const int64_t here = std::min<int64_t>(QK_SHERRY, x->ne[0] - block*QK_SHERRY);

            const float * values = at<float>(x, block*QK_SHERRY, i1, i2, i3);
            float gathered[QK_SHERRY];
            if (x->nb[0] != sizeof(float)) {
                for (int64_t j = 0; j < here; ++j) {
                    gathered[j] = *at<float>(x, block*QK_SHERRY + j, i1, i2, i3);
                }
                values = gathered;
            }
            quantize_block(values, here, row, block);
            if (p.few && p.n_tiles > 0) {
                make_tables(row, block, shared_tables(row, block));
            }
        }
    }

    void add_panel(const panel & panel) const {
        GGML_ASSERT(n_panels() < p.max_panels);
        panels()[n_panels()++] = panel;
    }

    // tokens that are multiplied with the same matrix
    void add_panels(const char * weights, int64_t first, int64_t count) const {
        if (p.many && count >= LEAST_MANY) {
            add_panels_of_strips(weights, first, count);
            return;
        }
        const int64_t most = p.few ? FEW : PANEL_TOKENS;
        for (int64_t i = 0; i < count; i += most) {
            add_panel({ weights, first + i, std::min(most, count - i), nullptr });
        }
    }

    // as few as there may be, of whole strips, and none of them much smaller than the others
    void add_panels_of_strips(const char * weights, int64_t first, int64_t count) const {
        const int64_t n = panel{ weights, first, count, nullptr }.n_strips(); // of all
        const int64_t parts = (n*SHERRY_STRIP_TOKENS + SHERRY_MANY_TOKENS - 1)/SHERRY_MANY_TOKENS;
        for (int64_t i = 0; i < parts; ++i) {
            const int64_t begin = n*i/parts, end = n*(i + 1)/parts;
            GGML_ASSERT(n_strips() + end - begin <= p.max_strips());
            add_panel({ weights, first + begin*SHERRY_STRIP_TOKENS,
                        std::min(end*SHERRY_STRIP_TOKENS, count) - begin*SHERRY_STRIP_TOKENS,
                        base + p.strips + n_strips()*p.n_blocks*p.strip_bytes() });
            n_strips() += end - begin;
        }
    }

    // one thread does this for all
    void prepare() const {
        n_panels() = n_strips() = 0;
        int64_t n = 0;
        if (p.ids == nullptr) {
            const ggml_tensor * x = p.x;
            for (int64_t i3 = 0; i3 < x->ne[3]; ++i3) {
                for (int64_t i2 = 0; i2 < x->ne[2]; ++i2) {
                    for (int64_t i1 = 0; i1 < x->ne[1]; ++i1, ++n) {
                        tokens()[n] = { n, at<float>(p.dst, 0, i1, i2, i3) };
                    }
                    // a matrix serves several of x
                    const int64_t i02 = i2/(x->ne[2]/p.weights->ne[2]);
                    const int64_t i03 = i3/(x->ne[3]/p.weights->ne[3]);
                    add_panels(p.matrix(i02, i03), n - x->ne[1], x->ne[1]);
                }
            }
            return;
        }
        // the tokens of each expert, one expert after the other
        for (int64_t expert = 0; expert < p.weights->ne[2] && n < p.n_tokens; ++expert) {
            const int64_t first = n;
            for (int64_t i2 = 0; i2 < p.ids->ne[1]; ++i2) {
                for (int64_t i1 = 0; i1 < p.ids->ne[0]; ++i1) {
                    const int32_t id = *at<int32_t>(p.ids, i1, i2);
                    GGML_ASSERT(id >= 0 && id < p.weights->ne[2]);
                    if (id == expert) {
                        tokens()[n++] = { i2*p.x->ne[1] + i1%p.x->ne[1], at<float>(p.dst, 0, i1, i2) };
                    }
                }
            }
            add_panels(p.matrix(expert), first, n - first);
        }
    }

    // this thread's share of the strips: of all panels' blocks, one after the other, those whose turn it is
    void arrange() const {
        int64_t turn = 0;
        for (int64_t i = 0; i < n_panels(); ++i) {
            const panel & panel = panels()[i];
            for (int64_t j = 0; panel.strips && j < panel.n_strips()*p.n_blocks; ++j, ++turn) {
                if (turn%nth == ith) {
                    arrange_strip(panel, j/panel.n_strips(), j%panel.n_strips());
                }
            }
        }
    }

    void arrange_strip(const panel & panel, int64_t block, int64_t strip) const {
        const int64_t first = strip*SHERRY_STRIP_TOKENS;
        const int     count = (int) std::min<int64_t>(SHERRY_STRIP_TOKENS, panel.count - first);

        const block_q8_sherry * x[SHERRY_STRIP_TOKENS];
        const float *           d[SHERRY_STRIP_TOKENS];
        for (int t = 0; t < count; ++t) {
            const int64_t row = tokens()[panel.first + first + t].row;
            x[t] = q8(row, block);
            d[t] = this->d(row) + block*p.n_scales;
        }
        p.many->arrange(x, d, p.n_scales, count, panel.strips + (block*panel.n_strips() + strip)*p.strip_bytes());
    }

    // block number `block` of 32 rows
    void pack_block(const char * rows, int64_t block, char * tile) const {
        const size_t row_blocks = p.row_bytes/ggml_type_size(p.weights->type);
        if (p.g32) {
            const int64_t left = p.weights->ne[0]/QK_SHERRY_G32 - block*SHERRY_G32_SCALES;
            ggml_sherry_pack_g32(p.kernel, (const block_sherry_g32 *) rows + block*SHERRY_G32_SCALES, row_blocks,
                                 (int) std::min<int64_t>(SHERRY_G32_SCALES, left), tile);
        } else if (p.weights->type != GGML_TYPE_STQ1_0) {
            for (int plane = 0; plane < p.n_planes; ++plane) {
                p.kernel->pack((const block_sherry *) rows + block*p.n_planes + plane, row_blocks*p.n_planes,
                               tile + plane*SHERRY_TILE_BYTES);
            }
        } else if (block%2 == 0) { // two at once
            ggml_sherry_pack_stq1_0(p.kernel, (const block_stq1_0 *) rows + block/2, row_blocks, tile);
        }
    }

    // n_blocks blocks of n_tiles tiles, tile_stride bytes apart, of weights in rows
    const char * pack(const char * weights, int64_t tile, int n_tiles, size_t tile_stride, int64_t block,
                      int64_t n_blocks) const {
        const size_t rows_bytes = SHERRY_TILE_ROWS*p.row_bytes;
        for (int i = 0; i < n_tiles; ++i) {
            const char * rows = weights + (tile + i)*rows_bytes;
            for (int64_t b = 0; b < n_blocks; ++b) {
                // the next rows' share; as an integer, because a pointer must not leave its array
                const size_t begin = rows_bytes*(block + b)/p.n_blocks, end = rows_bytes*(block + b + 1)/p.n_blocks;
                for (size_t at = begin; p.few && at < end; at += CACHE_LINE) {
                    PREFETCH((uintptr_t) rows + rows_bytes + at);
                }
                pack_block(rows, block + b, own_packed() + i*tile_stride + b*p.tile_bytes);
            }
        }
        return own_packed();
    }

    // some tiles of one panel
    void multiply_tiles(const panel & panel, int64_t first_tile, int64_t last_tile) const {
        if (panel.strips) {
            multiply_strips(panel, first_tile, last_tile);
        } else {
            multiply_runs(panel, first_tile, last_tile);
        }
    }

    void multiply_strips(const panel & panel, int64_t first_tile, int64_t last_tile) const {
        const size_t tile_stride = p.n_blocks*p.tile_bytes;
        float * dst[SHERRY_MANY_TOKENS];
        for (int64_t t = 0; t < panel.count; ++t) {
            dst[t] = tokens()[panel.first + t].dst + first_tile*SHERRY_TILE_ROWS;
        }
        p.many->mul((int) (last_tile - first_tile), tile_stride, panel.weights + first_tile*tile_stride,
                    (int) p.n_blocks*p.n_planes, p.n_planes, p.n_scales, (int) panel.count, panel.strips, dst);
    }

    // Sums over runs of blocks are kept in dst.
    void multiply_runs(const panel & panel, int64_t first_tile, int64_t last_tile) const {
        const token * tokens = this->tokens() + panel.first;
        // a run of all blocks reads the weights in the order they lie in; of many tokens its tables overflow the cache
        const int64_t run = !p.few ? RUN_BLOCKS : !p.in_tiles ? PACK_BLOCKS :
                            panel.count <= SHERRY_MAX_TOKENS ? p.n_blocks : RUN_BLOCKS;
        const size_t tile_stride = (p.in_tiles ? p.n_blocks : run)*p.tile_bytes;

        for (int64_t block = 0; block < p.n_blocks; block += run) {
            const int64_t n_blocks = std::min(run, p.n_blocks - block);

            const char *  tables[FEW];
            const float * d[FEW];
            for (int64_t t = 0; t < panel.count; ++t) {
                d[t]      = this->d(tokens[t].row) + block*p.n_scales;
                tables[t] = p.few ? shared_tables(tokens[t].row, block) : own_tables(t);
                for (int64_t i = 0; i < n_blocks && !p.few; ++i) {
                    make_tables(tokens[t].row, block + i, own_tables(t) + i*p.kernel->table_bytes);
                }
            }
            for (int64_t tile = first_tile; tile < last_tile; tile += p.kernel->max_tiles) {
                const int    n_tiles = (int) std::min<int64_t>(p.kernel->max_tiles, last_tile - tile);
                const char * tiles   = p.in_tiles ? panel.weights + tile*tile_stride + block*p.tile_bytes
                                                  : pack(panel.weights, tile, n_tiles, tile_stride, block, n_blocks);
                for (int64_t t = 0; t < panel.count; t += SHERRY_MAX_TOKENS) {
                    const int n = (int) std::min<int64_t>(SHERRY_MAX_TOKENS, panel.count - t);
                    float * dst[SHERRY_MAX_TOKENS];
                    for (int i = 0; i < n; ++i) {
                        dst[i] = tokens[t + i].dst + tile*SHERRY_TILE_ROWS;
                    }
                    (p.g32 ? p.kernel->mul_g32 : p.kernel->mul)(
                        n_tiles, tile_stride, tiles, (int) n_blocks*p.n_planes, p.n_planes, n,
                        (const void * const *) (tables + t), d + t, dst, block == 0, t == 0 && p.in_tiles);
                }
            }
        }
    }

    // the rows that fill no tile
    void multiply_rest(const panel & panel) const {
        const ggml_vec_dot_t vec_dot =
            p.g32 ? ggml_vec_dot_sherry_g32_q8_sherry_g32 :
            p.n_planes > 1 ? ggml_vec_dot_sherry_2p_q8_sherry :
            p.weights->type == GGML_TYPE_STQ1_0 && !p.in_tiles ? ggml_vec_dot_stq1_0_q8_stq1_0 : ggml_vec_dot_sherry_q8_sherry;
        for (int64_t row = p.n_tiles*SHERRY_TILE_ROWS; row < p.weights->ne[1]; ++row) {
            const char * weights = panel.weights + row*p.row_bytes;
            for (int64_t t = 0; t < panel.count; ++t) {
                const token & token = tokens()[panel.first + t];
                const void  * x = p.g32 ? (const void *) q8_g32(token.row, 0) : q8(token.row, 0);
                vec_dot((int) p.weights->ne[0], token.dst + row, 0, weights, 0, x, 0, 1);
            }
        }
    }

    void multiply(ggml_threadpool * threadpool) const {
        // a kernel is at its best with as many tiles as it takes at once, unless that leaves threads without work; tiles
        // that are packed for few tokens had better be read one by one; a unit for many tokens takes one after the other
        const bool    by_one = p.n_tiles < p.kernel->max_tiles*nth || (p.few && !p.in_tiles) || p.many;
        const int64_t step   = by_one ? 1 : p.kernel->max_tiles;
        const int64_t wanted = std::max<int64_t>(1, PARTS*nth/std::max<int64_t>(1, n_panels()));
        const int64_t tiles  = p.few ? step : (p.n_tiles + wanted - 1)/wanted;
        const int64_t part_tiles = std::max<int64_t>(1, (tiles + step - 1)/step*step);
        const int64_t n_parts = std::max<int64_t>(1, (p.n_tiles + part_tiles - 1)/part_tiles);

        // the first part of each thread is known, so the counter begins after those
        for (int64_t i = ith; i < n_panels()*n_parts; i = ggml_threadpool_chunk_add(threadpool, 1)) {
            const panel & panel = panels()[i/n_parts];
            const int64_t part  = i%n_parts;
            multiply_tiles(panel, part*part_tiles, std::min((part + 1)*part_tiles, p.n_tiles));
            if (part == n_parts - 1) {
                multiply_rest(panel);
            }
        }
    }
};

}  // namespace

size_t work_size(int n_threads, const ggml_tensor * op, bool in_tiles) {
    return plan(n_threads, const_cast<ggml_tensor *>(op), in_tiles).size + CACHE_LINE; // wdata may lie anywhere
}

void mul_mat(const ggml_compute_params * params, ggml_tensor * op, bool in_tiles) {
    const plan   plan(params->nth, op, in_tiles);
    const worker worker(plan, params);

    if (plan.n_tokens == 0) {
        return;
    }
    worker.quantize();
    if (params->ith == 0) {
        worker.prepare();
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);
    if (plan.many) {
        worker.arrange();
        ggml_barrier(params->threadpool);
    }
    worker.multiply(params->threadpool);
}

}  // namespace ggml::cpu::sherry
