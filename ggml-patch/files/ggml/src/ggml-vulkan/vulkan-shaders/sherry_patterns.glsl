// The 32 patterns of a group in shared memory, four signed bytes each. Their words lie in 32 banks, so that no two threads of a
// warp meet in one. fill_patterns comes before the first look.

shared int32_t patterns[32];

void fill_patterns() {
    for (uint code = gl_LocalInvocationIndex.x; code < 32; code += gl_WorkGroupSize.x) {
        patterns[code] = sherry_bytes(code, code >> 4);
    }
    barrier();
}

// sherry_bytes by the table
int32_t sherry_look_up(const uint index, const uint sign) {
    return patterns[(index & 0xFu) | (sign & 1u) << 4];
}
