// What mul_mmq.comp keeps of a matrix of SHERRY, SHERRY_G32 or STQ1_0: 32 weights as bytes and their scale, as of Q8_0.

#include "sherry_patterns.glsl"

// mul_mmq.comp calls this first.
#define NEEDS_INIT_IQ_SHMEM
void init_iq_shmem(uvec3) {
    fill_patterns();
}

// Four weights a call: bytes 4*iqs to 4*iqs + 3 of block ib of 32.
void block_a_to_shmem(const uint buf_ib, const uint ib, const uint iqs) {
    const uint block = ib / (QUANT_K / BK);
    const uint e = ib % (QUANT_K / BK) * BK + 4*iqs;
#if defined(DATA_A_SHERRY)
    buf_a[buf_ib].qs[iqs] = SHERRY_BYTES(sherry_look_up, data_a[block], e);
#elif defined(DATA_A_SHERRY_G32)
    buf_a[buf_ib].qs[iqs] = SHERRY_G32_BYTES(sherry_look_up, data_a[block], e);
#else
    buf_a[buf_ib].qs[iqs] = STQ1_0_BYTES(sherry_look_up, data_a[block], e);
#endif

    if (iqs == 0) {
#if defined(DATA_A_SHERRY_G32)
        buf_a[buf_ib].dm = FLOAT_TYPE(SHERRY_G32_SCALE(data_a[block]));
#else
        buf_a[buf_ib].dm = FLOAT_TYPE(data_a[block].d);
#endif
    }
}

void block_a_to_registers(const uint reg_ib, const uint buf_ib) {
    cache_a[reg_ib] = buf_a[buf_ib];
}

ACC_TYPE mmq_dot_product(const uint ib_a) {
    int32_t sum = 0;
    [[unroll]] for (uint i = 0; i < BK / 4; ++i) {
        sum += dotPacked4x8EXT(cache_a[ib_a].qs[i], cache_b.qs[i]);
    }
    return ACC_TYPE(float(sum) * float(cache_a[ib_a].dm) * float(cache_b.ds.x));
}
