// dequantize, dequantize4 and get_dm of SHERRY, SHERRY_G32, SHERRY_2P and STQ1_0.

#if defined(DATA_A_SHERRY)
vec4 dequantize4(uint ib, uint iqs, uint a_offset) {
    return SHERRY_WEIGHTS(data_a[a_offset + ib], iqs);
}
vec2 get_dm(uint ib, uint a_offset) {
    return vec2(float(data_a[a_offset + ib].d), 0);
}
#endif

#if defined(DATA_A_SHERRY_G32)
vec4 dequantize4(uint ib, uint iqs, uint a_offset) {
    return SHERRY_G32_WEIGHTS(data_a[a_offset + ib], iqs);
}
vec2 get_dm(uint ib, uint a_offset) {
    return vec2(SHERRY_G32_SCALE(data_a[a_offset + ib]), 0);
}
#endif

#if defined(DATA_A_SHERRY_2P)
vec4 dequantize4(uint ib, uint iqs, uint a_offset) {
    return SHERRY_2P_WEIGHTS(data_a[a_offset + ib], iqs);
}
vec2 get_dm(uint ib, uint a_offset) {
    return vec2(1, 0);
}
#endif

#if defined(DATA_A_STQ1_0)
vec4 dequantize4(uint ib, uint iqs, uint a_offset) {
    return STQ1_0_WEIGHTS(data_a[a_offset + ib], iqs);
}
vec2 get_dm(uint ib, uint a_offset) {
    return vec2(float(data_a[a_offset + ib].d), 0);
}
#endif

#if defined(DATA_A_SHERRY) || defined(DATA_A_SHERRY_G32) || defined(DATA_A_SHERRY_2P) || defined(DATA_A_STQ1_0)
vec2 dequantize(uint ib, uint iqs, uint a_offset) {
    const vec4 v = dequantize4(ib, iqs & ~3u, a_offset);
    return (iqs & 2u) == 0 ? v.xy : v.zw;
}
#endif
