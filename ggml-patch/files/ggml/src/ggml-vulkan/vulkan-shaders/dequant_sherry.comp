#version 450

#include "dequant_head.glsl"

layout(local_size_x = 256, local_size_y = 1, local_size_z = 1) in;

layout (binding = 0) readonly buffer A {A_TYPE data_a[];};
layout (binding = 1) writeonly buffer D {D_TYPE data_b[];};

#include "dequant_funcs.glsl"

// 256 threads write four weights each, 16 times.
void main() {
    [[unroll]] for (uint i = 0; i < 16; ++i) {
        const uint e = 4 * (256 * (16 * gl_WorkGroupID.x + i) + gl_LocalInvocationID.x);
        if (e >= p.nel) {
            return;
        }

        const uint ib = e / QUANT_K;
        const vec4 v = dequantize4(ib, e % QUANT_K, 0) * get_dm(ib, 0).x;
        [[unroll]] for (uint k = 0; k < 4; ++k) {
            data_b[e + k] = D_TYPE(v[k]);
        }
    }
}
