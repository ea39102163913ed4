#version 450

// Rows of SHERRY, SHERRY_G32, SHERRY_2P or STQ1_0 times up to NUM_COLS vectors. A thread takes eight groups of a block at a
// time, which is 32 weights: four bytes of indices, eight signs.

#extension GL_EXT_shader_explicit_arithmetic_types_int32 : require

#include "mul_mat_vec_base.glsl"

layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;

FLOAT_TYPE temp[NUM_COLS][NUM_ROWS];

#define THREADS_PER_BLOCK (QUANT_K / 32)

#if defined(DATA_A_SHERRY_2P)
#define PLANES 2
#define BLOCK(ib, plane) data_a_packed16[ib].planes[plane]
#else
#define PLANES 1
#define BLOCK(ib, plane) data_a_packed16[ib]
#endif

// Eight groups: a nibble each in indices, a bit each in signs.
struct octet
{
    uint indices;
    uint signs;
    float d;
};

#if defined(DATA_A_STQ1_0)

// Groups 8*t to 8*t + 7.
octet load_octet(const uint ib, const uint t, const uint plane) {
    return octet(uint(BLOCK(ib, plane).qs[2*t]) | uint(BLOCK(ib, plane).qs[2*t + 1]) << 16,
                 uint(data_a[ib].signs[t]), float(BLOCK(ib, plane).d));
}

uint index_shift(const uint k) {
    return 4*k;
}

// A vector of data_b_v4 is one lane of four groups here, 16 weights before the next lane: transposed, it is a group's weights.
void load_inputs(const uint y, const uint t, out vec4 b[8]) {
    [[unroll]] for (uint half_ = 0; half_ < 2; ++half_) {
        const uint v = y / 4 + t / 2 * 16 + t % 2 * 2 + half_;
        const mat4 groups = transpose(mat4(data_b_v4[v], data_b_v4[v + 4], data_b_v4[v + 8], data_b_v4[v + 12]));
        [[unroll]] for (uint k = 0; k < 4; ++k) {
            b[4*half_ + k] = groups[k];
        }
    }
}

#else

// Bytes 4*t to 4*t + 3 of the indices. Their low nibbles are groups 4*t to 4*t + 3 of the block's first half, their high ones
// the same of its second half.
octet load_octet(const uint ib, const uint t, const uint plane) {
#if defined(DATA_A_SHERRY_G32)
    return octet(pack32(u8vec4(data_a[ib].qs[0], data_a[ib].qs[1], data_a[ib].qs[2], data_a[ib].qs[3])),
                 uint(data_a[ib].signs), SHERRY_G32_SCALE(data_a[ib]));
#else
    const uint low  = bitfieldExtract(uint(BLOCK(ib, plane).signs[0]), int(4*t), 4);
    const uint high = bitfieldExtract(uint(BLOCK(ib, plane).signs[1]), int(4*t), 4);
    return octet(uint(BLOCK(ib, plane).qs[2*t]) | uint(BLOCK(ib, plane).qs[2*t + 1]) << 16,
                 low | high << 4, float(BLOCK(ib, plane).d));
#endif
}

uint index_shift(const uint k) {
    return k % 4 * 8 + k / 4 * 4;
}

void load_inputs(const uint y, const uint t, out vec4 b[8]) {
    [[unroll]] for (uint k = 0; k < 8; ++k) {
        b[k] = vec4(data_b_v4[y / 4 + t * 4 + k % 4 + k / 4 * (QUANT_K / 8)]);
    }
}

#endif

void calc_octet(const uint a_offset, const uint b_offset, const uint t, const uint i, const uint num_blocks_per_row, const uint first_row, const uint num_rows) {
    [[unroll]] for (uint n = 0; n < num_rows; ++n) {
        const uint ib = a_offset + (first_row + n)*num_blocks_per_row + i;

        int32_t groups[PLANES][8];
        float d[PLANES];
        [[unroll]] for (uint plane = 0; plane < PLANES; ++plane) {
            const octet o = load_octet(ib, t, plane);
            d[plane] = o.d;
            [[unroll]] for (uint k = 0; k < 8; ++k) {
                groups[plane][k] = sherry_bytes(o.indices >> index_shift(k), o.signs >> k);
            }
        }

        [[unroll]] for (uint j = 0; j < NUM_COLS; ++j) {
            vec4 b[8];
            load_inputs(j*p.batch_stride_b + b_offset + i*QUANT_K, t, b);
            [[unroll]] for (uint plane = 0; plane < PLANES; ++plane) {
                FLOAT_TYPE sum = FLOAT_TYPE(0.0);
                [[unroll]] for (uint k = 0; k < 8; ++k) {
                    sum += FLOAT_TYPE(dot(b[k], vec4(unpack8(groups[plane][k]))));
                }
                temp[j][n] = fma(FLOAT_TYPE(d[plane]), sum, temp[j][n]);
            }
        }
    }
}

void compute_outputs(const uint32_t first_row, const uint32_t num_rows) {
    uint a_offset, b_offset, d_offset;
    get_offsets(a_offset, b_offset, d_offset);

    const uint num_blocks_per_row = p.ncols / QUANT_K;
    const uint blocks_per_wg = gl_WorkGroupSize.x / THREADS_PER_BLOCK;
    const uint tid = gl_LocalInvocationID.x;

    [[unroll]] for (uint j = 0; j < NUM_COLS; ++j) {
        [[unroll]] for (uint n = 0; n < NUM_ROWS; ++n) {
            temp[j][n] = FLOAT_TYPE(0);
        }
    }

    for (uint i = tid / THREADS_PER_BLOCK; i < num_blocks_per_row; i += blocks_per_wg) {
        calc_octet(a_offset, b_offset, tid % THREADS_PER_BLOCK, i, num_blocks_per_row, first_row, num_rows);
    }

    reduce_result(temp, d_offset, first_row, num_rows, tid);
}

void main() {
    const uint first_row = NUM_ROWS * (gl_WorkGroupID.x + gl_NumWorkGroups.x * gl_WorkGroupID.z);

    // NUM_ROWS at a time, unless fewer are left
    if (first_row + NUM_ROWS <= p.stride_d) {
        compute_outputs(first_row, NUM_ROWS);
    } else if (first_row < p.stride_d) {
        compute_outputs(first_row, p.stride_d - first_row);
    }
}
