// What mul_mm.comp loads of a matrix of SHERRY, SHERRY_G32, SHERRY_2P or STQ1_0: four weights at a time.

layout (binding = 0) readonly buffer BUF_SHERRY     { block_sherry data[];     } a_sherry;
layout (binding = 0) readonly buffer BUF_SHERRY_G32 { block_sherry_g32 data[]; } a_sherry_g32;
layout (binding = 0) readonly buffer BUF_SHERRY_2P  { block_sherry_2p data[];  } a_sherry_2p;
layout (binding = 0) readonly buffer BUF_STQ1_0     { block_stq1_0 data[];     } a_stq1_0;

// Weights 4*idx to 4*idx + 3.
vec4 sherry_mm_load(const uint idx) {
    if (MmTypeA == GGML_TYPE_SHERRY) {
        const uint ib = idx / (QUANT_K_SHERRY / 4);
        return float(a_sherry.data[ib].d) * SHERRY_WEIGHTS(a_sherry.data[ib], idx * 4u % QUANT_K_SHERRY);
    }
    if (MmTypeA == GGML_TYPE_SHERRY_G32) {
        const uint ib = idx / (QUANT_K_SHERRY_G32 / 4);
        return SHERRY_G32_SCALE(a_sherry_g32.data[ib]) * SHERRY_G32_WEIGHTS(a_sherry_g32.data[ib], idx * 4u % QUANT_K_SHERRY_G32);
    }
    if (MmTypeA == GGML_TYPE_SHERRY_2P) {
        const uint ib = idx / (QUANT_K_SHERRY_2P / 4);
        return SHERRY_2P_WEIGHTS(a_sherry_2p.data[ib], idx * 4u % QUANT_K_SHERRY_2P);
    }
    const uint ib = idx / (QUANT_K_STQ1_0 / 4);
    return float(a_stq1_0.data[ib].d) * STQ1_0_WEIGHTS(a_stq1_0.data[ib], idx * 4u % QUANT_K_STQ1_0);
}
