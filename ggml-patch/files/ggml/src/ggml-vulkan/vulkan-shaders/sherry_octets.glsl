// What a thread of mul_mat_vec_sherry.comp or mul_mat_vecq_sherry.comp takes of a row at a time: an octet, eight groups of a
// block, which is 32 weights: four bytes of indices, eight signs.

#define OCTETS_PER_BLOCK (QUANT_K / 32)

#if defined(DATA_A_SHERRY_2P)
#define PLANES 2
#define BLOCK(ib, plane) data_a_packed16[ib].planes[plane]
#else
#define PLANES 1
#define BLOCK(ib, plane) data_a_packed16[ib]
#endif

// A code is five bits, the index and above it the sign, and a byte of codes: half h has the groups GROUP(h, 0) to GROUP(h, 3),
// code j of it CODE(o, h, j).
struct octet
{
    uvec2 codes;
    float d;
};

#define CODE(o, h, j) bitfieldExtract((o).codes[h], int(8*(j)), 5)

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

#endif
