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

// Eight groups. A code is five bits, the index and above it the sign, and a byte of codes: half h has the groups GROUP(h, 0)
// to GROUP(h, 3). The bits above a code are 0.
struct octet
{
    uvec2 codes;
    float d;
};

// Four bits, or the even ones of a byte, to bit 4 of each byte. Where two copies of them add up, they carry into bits that
// nobody reads.
#define SIGNS_OF_4(bits)    ((bits) * 0x02040810u)
#define SIGNS_OF_EVEN(bits) (((bits) & 0x55u) * 0x00410410u)

uint codes_of_4(const uint indices, const uint signs) {
    return (indices & 0x0F0F0F0Fu) | (signs & 0x10101010u);
}

#if defined(DATA_A_STQ1_0)

#define GROUP(h, j) (2 * (j) + (h))

// Groups 8*t to 8*t + 7.
octet load_octet(const uint ib, const uint t, const uint plane) {
    const uint indices = uint(BLOCK(ib, plane).qs[2*t]) | uint(BLOCK(ib, plane).qs[2*t + 1]) << 16;
    const uint signs = uint(data_a[ib].signs[t]);
    return octet(uvec2(codes_of_4(indices, SIGNS_OF_EVEN(signs)), codes_of_4(indices >> 4, SIGNS_OF_EVEN(signs >> 1))),
                 float(BLOCK(ib, plane).d));
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

#define GROUP(h, j) (4 * (h) + (j))

// Bytes 4*t to 4*t + 3 of the indices. Their low nibbles are groups 4*t to 4*t + 3 of the block's first half, their high ones
// the same of its second half.
octet load_octet(const uint ib, const uint t, const uint plane) {
#if defined(DATA_A_SHERRY_G32)
    const uint indices = pack32(u8vec4(data_a[ib].qs[0], data_a[ib].qs[1], data_a[ib].qs[2], data_a[ib].qs[3]));
    const uint low  = uint(data_a[ib].signs) & 0xFu;
    const uint high = uint(data_a[ib].signs) >> 4;
    const float d = SHERRY_G32_SCALE(data_a[ib]);
#else
    const uint indices = uint(BLOCK(ib, plane).qs[2*t]) | uint(BLOCK(ib, plane).qs[2*t + 1]) << 16;
    const uint low  = bitfieldExtract(uint(BLOCK(ib, plane).signs[0]), int(4*t), 4);
    const uint high = bitfieldExtract(uint(BLOCK(ib, plane).signs[1]), int(4*t), 4);
    const float d = float(BLOCK(ib, plane).d);
#endif
    return octet(uvec2(codes_of_4(indices, SIGNS_OF_4(low)), codes_of_4(indices >> 4, SIGNS_OF_4(high))), d);
}

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
                    groups[plane][GROUP(h, j)] = pattern(bitfieldExtract(o.codes[h], int(8*j), 5));
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
    fill_patterns();

    const uint first_row = NUM_ROWS * (gl_WorkGroupID.x + gl_NumWorkGroups.x * gl_WorkGroupID.z);

    // NUM_ROWS at a time, unless fewer are left
    if (first_row + NUM_ROWS <= p.stride_d) {
        compute_outputs(first_row, NUM_ROWS);
    } else if (first_row < p.stride_d) {
        compute_outputs(first_row, p.stride_d - first_row);
    }
}
