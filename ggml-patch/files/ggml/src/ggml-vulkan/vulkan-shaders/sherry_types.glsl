// The blocks of SHERRY, SHERRY_G32, SHERRY_2P and STQ1_0, and what the five bits of a group mean.

#define QUANT_K_SHERRY     128
#define QUANT_K_SHERRY_G32 32
#define QUANT_K_SHERRY_2P  128
#define QUANT_K_STQ1_0     256

struct block_sherry
{
    uint8_t qs[QUANT_K_SHERRY/8];
    uint8_t signs[QUANT_K_SHERRY/32];
    float16_t d;
};

struct block_sherry_packed16
{
    uint16_t qs[QUANT_K_SHERRY/8/2];
    uint16_t signs[QUANT_K_SHERRY/32/2];
    float16_t d;
};

// Seven bytes, so that the scale of every other block lies at an odd address: it is two bytes here.
struct block_sherry_g32
{
    uint8_t qs[QUANT_K_SHERRY_G32/8];
    uint8_t signs;
    uint8_t d[2];
};

struct block_sherry_2p
{
    block_sherry planes[2];
};

struct block_sherry_2p_packed16
{
    block_sherry_packed16 planes[2];
};

struct block_stq1_0
{
    uint8_t qs[QUANT_K_STQ1_0/8];
    uint8_t signs[QUANT_K_STQ1_0/32];
    float16_t d;
};

struct block_stq1_0_packed16
{
    uint16_t qs[QUANT_K_STQ1_0/8/2];
    uint16_t signs[QUANT_K_STQ1_0/32/2];
    float16_t d;
};

#if defined(DATA_A_SHERRY)
#define QUANT_K QUANT_K_SHERRY
#define QUANT_R 1
#define A_TYPE block_sherry
#define A_TYPE_PACKED16 block_sherry_packed16
#endif

#if defined(DATA_A_SHERRY_G32)
#define QUANT_K QUANT_K_SHERRY_G32
#define QUANT_R 1
#define A_TYPE block_sherry_g32
#endif

#if defined(DATA_A_SHERRY_2P)
#define QUANT_K QUANT_K_SHERRY_2P
#define QUANT_R 1
#define A_TYPE block_sherry_2p
#define A_TYPE_PACKED16 block_sherry_2p_packed16
#endif

#if defined(DATA_A_STQ1_0)
#define QUANT_K QUANT_K_STQ1_0
#define QUANT_R 1
#define A_TYPE block_stq1_0
#define A_TYPE_PACKED16 block_stq1_0_packed16
#endif

// The four weights of a group as signed bytes, each -1, 0 or 1. Bits of index: 3 and 2 are the position of the zero, 1 and 0
// say whether the third and the second of the other weights differ in sign from the first; bit 0 of sign is the first one's.
int32_t sherry_bytes(const uint index, const uint sign) {
    // a byte for each of the three that are not zero, in order: its lowest bit is the sign
    const uint signs = (bitfieldExtract(index, 0, 1) << 8 | bitfieldExtract(index, 1, 1) << 16) ^ (0u - (sign & 1u) & 0x010101u);
    const uint three = 0x010101u + (signs << 8) - (signs << 1);
    // those before the zero stay, those after it move up by a byte
    const uint before = (1u << (8u * bitfieldExtract(index, 2, 2))) - 1u;
    return int32_t((three & before) | (three & ~before) << 8);
}

vec4 sherry_group(const uint index, const uint sign) {
    return vec4(unpack8(sherry_bytes(index, sign)));
}

#define SHERRY_G32_SCALE(block) unpackHalf2x16(uint((block).d[0]) | uint((block).d[1]) << 8).x

// Weights e to e + 3 of a block in a buffer, e a multiple of 4, as bytes: by sherry_bytes or a function like it. These are
// macros because GLSL has no references: a function would copy the block.
#define SHERRY_BYTES(bytes, block, e)     bytes(uint((block).qs[(e) / 4u % 16u]) >> ((e) / 64u * 4u), uint((block).signs[(e) / 32u]) >> ((e) / 4u % 8u))
#define SHERRY_G32_BYTES(bytes, block, e) bytes(uint((block).qs[(e) / 4u % 4u]) >> ((e) / 16u * 4u), uint((block).signs) >> ((e) / 4u))

// In STQ1_0 four neighbours are of four groups: lane e % 64 / 16 of each.
#define STQ1_0_BYTES(bytes, block, e) pack32(i8vec4(STQ1_0_BYTE(bytes, block, e), STQ1_0_BYTE(bytes, block, (e) + 1u), \
                                                    STQ1_0_BYTE(bytes, block, (e) + 2u), STQ1_0_BYTE(bytes, block, (e) + 3u)))
#define STQ1_0_BYTE(bytes, block, e)  (STQ1_0_GROUP(bytes, block, (e) / 64u * 16u + (e) % 16u) >> ((e) % 64u / 16u * 8u))
#define STQ1_0_GROUP(bytes, block, g) bytes(uint((block).qs[(g) / 2u]) >> ((g) % 2u * 4u), uint((block).signs[(g) / 8u]) >> ((g) % 8u))

// The same as floats, not scaled but for the two planes.
#define SHERRY_WEIGHTS(block, e)     vec4(unpack8(SHERRY_BYTES(sherry_bytes, block, e)))
#define SHERRY_G32_WEIGHTS(block, e) vec4(unpack8(SHERRY_G32_BYTES(sherry_bytes, block, e)))
#define SHERRY_2P_WEIGHTS(block, e)  (float((block).planes[0].d) * SHERRY_WEIGHTS((block).planes[0], e) + \
                                      float((block).planes[1].d) * SHERRY_WEIGHTS((block).planes[1], e))
#define STQ1_0_WEIGHTS(block, e)     vec4(unpack8(STQ1_0_BYTES(sherry_bytes, block, e)))
