#version 450

// Rows of SHERRY, SHERRY_G32, SHERRY_2P or STQ1_0 times up to NUM_COLS vectors of Q8_1, by products of four bytes at once.

#extension GL_EXT_shader_explicit_arithmetic_types_int32 : require
#extension GL_EXT_integer_dot_product : require

#define MMQ
#if defined(DATA_A_STQ1_0)
#define B_TYPE block_q8_1_x4
#else
#define B_TYPE block_q8_1_x4_packed128
#endif

#include "mul_mat_vec_base.glsl"

layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;

FLOAT_TYPE temp[NUM_COLS][NUM_ROWS];

#include "sherry_octets.glsl"
#include "sherry_patterns.glsl"

// 32 activations: of the two blocks of Q8_1 that they are in, or the one, 16 bytes each and the scale.
struct inputs
{
    ivec4 qs[2];
    vec2 d;
};

#if defined(DATA_A_STQ1_0)

// Word k of lane: weight `lane` of each of groups 4*k to 4*k + 3. Two lanes are in a block of Q8_1.
ivec4[2] weights_of(const octet o) {
    ivec4 weights[2];
    [[unroll]] for (uint k = 0; k < 2; ++k) {
        ivec4 groups;
        [[unroll]] for (uint g = 0; g < 4; ++g) {
            groups[g] = patterns[CODE(o, g % 2, 2*k + g / 2)];
        }
        // transposed as 2x2 blocks of bytes, then as bytes
        const ivec2 even = (groups.xz & 0x00FF00FF) | (groups.yw & 0x00FF00FF) << 8;
        const ivec2 odd  = (groups.xz >> 8 & 0x00FF00FF) | (groups.yw & int(0xFF00FF00u));
        weights[0][k]     = bitfieldInsert(even.x, even.y, 16, 16);
        weights[0][2 + k] = bitfieldInsert(odd.x, odd.y, 16, 16);
        weights[1][k]     = bitfieldInsert(even.y, even.x >> 16, 0, 16);
        weights[1][2 + k] = bitfieldInsert(odd.y, odd.x >> 16, 0, 16);
    }
    return weights;
}

inputs load_inputs(const uint y, const uint t) {
    inputs b;
    [[unroll]] for (uint h = 0; h < 2; ++h) {
        const uint ib = y / QUANT_K_Q8_1 + t / 2 * 2 + h;
        const uint word = ib % 4 * 8 + t % 2 * 2;
        b.qs[h] = ivec4(data_b[ib / 4].qs[word],     data_b[ib / 4].qs[word + 1],
                        data_b[ib / 4].qs[word + 4], data_b[ib / 4].qs[word + 5]);
        b.d[h] = float(data_b[ib / 4].ds[ib % 4].x);
    }
    return b;
}

#else

ivec4[2] weights_of(const octet o) {
    ivec4 weights[2];
    [[unroll]] for (uint h = 0; h < 2; ++h) {
        [[unroll]] for (uint j = 0; j < 4; ++j) {
            weights[h][j] = patterns[CODE(o, h, j)];
        }
    }
    return weights;
}

inputs load_inputs(const uint y, const uint t) {
    inputs b;
    [[unroll]] for (uint h = 0; h < 2; ++h) {
        const uint e = y + h * (QUANT_K / 2) + 16*t;
        const uint ib = e / QUANT_K_Q8_1;
        b.qs[h] = data_b[ib / 4].qs[ib % 4 * 2 + e / 16 % 2];
        b.d[h] = float(data_b[ib / 4].ds[ib % 4].x);
    }
    return b;
}

#endif

int32_t dot_16(const ivec4 a, const ivec4 b) {
    return dotPacked4x8EXT(a.x, b.x) + dotPacked4x8EXT(a.y, b.y) + dotPacked4x8EXT(a.z, b.z) + dotPacked4x8EXT(a.w, b.w);
}

// The rows' weights are decoded once and kept, so that a column's activations are loaded once for all rows. Places in the
// arrays are constants even where num_rows is not, and stay registers.
void calc_octet(const uint a_offset, const uint b_offset, const uint t, const uint i, const uint num_blocks_per_row, const uint first_row, const uint num_rows) {
    ivec4 weights[NUM_ROWS][PLANES][2];
    float d[NUM_ROWS][PLANES];
    [[unroll]] for (uint n = 0; n < NUM_ROWS; ++n) {
        if (n < num_rows) {
            [[unroll]] for (uint plane = 0; plane < PLANES; ++plane) {
                const octet o = load_octet(a_offset + (first_row + n)*num_blocks_per_row + i, t, plane);
                weights[n][plane] = weights_of(o);
                d[n][plane] = o.d;
            }
        }
    }

    [[unroll]] for (uint j = 0; j < NUM_COLS; ++j) {
        const inputs b = load_inputs(j*p.batch_stride_b + b_offset + i*QUANT_K, t);
        [[unroll]] for (uint n = 0; n < NUM_ROWS; ++n) {
            if (n < num_rows) {
                [[unroll]] for (uint plane = 0; plane < PLANES; ++plane) {
                    const float sum = float(dot_16(weights[n][plane][0], b.qs[0])) * b.d[0] +
                                      float(dot_16(weights[n][plane][1], b.qs[1])) * b.d[1];
                    temp[j][n] = fma(d[n][plane], sum, temp[j][n]);
                }
            }
        }
    }
}

#include "sherry_mat_vec_main.glsl"
