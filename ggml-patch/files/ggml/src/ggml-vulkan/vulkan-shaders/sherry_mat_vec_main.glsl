// The rest of mul_mat_vec_sherry.comp and mul_mat_vecq_sherry.comp, which have temp, fill_patterns and calc_octet.

void compute_outputs(const uint32_t first_row, const uint32_t num_rows) {
    uint a_offset, b_offset, d_offset;
    get_offsets(a_offset, b_offset, d_offset);

    const uint num_blocks_per_row = p.ncols / QUANT_K;
    const uint tid = gl_LocalInvocationID.x;

    [[unroll]] for (uint j = 0; j < NUM_COLS; ++j) {
        [[unroll]] for (uint n = 0; n < NUM_ROWS; ++n) {
            temp[j][n] = FLOAT_TYPE(0);
        }
    }

    // There may be fewer threads than octets in a block.
    for (uint i = tid; i < num_blocks_per_row * OCTETS_PER_BLOCK; i += gl_WorkGroupSize.x) {
        calc_octet(a_offset, b_offset, i % OCTETS_PER_BLOCK, i / OCTETS_PER_BLOCK, num_blocks_per_row, first_row, num_rows);
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
