#version 450

// Rows of SHERRY, SHERRY_G32, SHERRY_2P or STQ1_0 times up to NUM_COLS vectors of floats.

#extension GL_EXT_shader_explicit_arithmetic_types_int32 : require

#include "mul_mat_vec_base.glsl"

layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;

FLOAT_TYPE temp[NUM_COLS][NUM_ROWS];

#include "sherry_octets.glsl"

#if defined(DATA_A_STQ1_0)

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

void load_inputs(const uint y, const uint t, out vec4 b[8]) {
    [[unroll]] for (uint k = 0; k < 8; ++k) {
        b[k] = vec4(data_b_v4[y / 4 + t * 4 + k % 4 + k / 4 * (QUANT_K / 8)]);
    }
}

#endif

#if defined(DATA_A_SHERRY_G32)

// A thread's eight groups are a whole block here, with a scale, and arithmetic measured better than the table.
void fill_patterns() {
}

vec4 pattern(const uint code) {
    return sherry_group(code, code >> 4);
}

#else

// The 32 patterns: the upper halves of four floats, of which a float of 1, 0 or -1 has no other bits.
shared uvec2 patterns[32];

void fill_patterns() {
    for (uint code = gl_LocalInvocationIndex.x; code < 32; code += gl_WorkGroupSize.x) {
        const uvec4 bits = floatBitsToUint(sherry_group(code, code >> 4));
        patterns[code] = uvec2(bits.x >> 16 | bits.y, bits.z >> 16 | bits.w);
    }
    barrier();
}

vec4 pattern(const uint code) {
    const uvec2 halves = patterns[code];
    return uintBitsToFloat(uvec4(halves.x << 16, halves.x & 0xFFFF0000u, halves.y << 16, halves.y & 0xFFFF0000u));
}

#endif

void calc_octet(const uint a_offset, const uint b_offset, const uint t, const uint i, const uint num_blocks_per_row, const uint first_row, const uint num_rows) {
    [[unroll]] for (uint n = 0; n < num_rows; ++n) {
        const uint ib = a_offset + (first_row + n)*num_blocks_per_row + i;

        vec4 groups[PLANES][8];
        float d[PLANES];
        [[unroll]] for (uint plane = 0; plane < PLANES; ++plane) {
            const octet o = load_octet(ib, t, plane);
            d[plane] = o.d;
            [[unroll]] for (uint h = 0; h < 2; ++h) {
                [[unroll]] for (uint j = 0; j < 4; ++j) {
                    groups[plane][GROUP(h, j)] = pattern(CODE(o, h, j));
                }
            }
        }

        [[unroll]] for (uint j = 0; j < NUM_COLS; ++j) {
            vec4 b[8];
            load_inputs(j*p.batch_stride_b + b_offset + i*QUANT_K, t, b);
            [[unroll]] for (uint plane = 0; plane < PLANES; ++plane) {
                FLOAT_TYPE sum = FLOAT_TYPE(0.0);
                [[unroll]] for (uint k = 0; k < 8; ++k) {
                    sum += FLOAT_TYPE(dot(b[k], groups[plane][k]));
                }
                temp[j][n] = fma(FLOAT_TYPE(d[plane]), sum, temp[j][n]);
            }
        }
    }
}

#include "sherry_mat_vec_main.glsl"
