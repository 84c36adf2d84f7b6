// Tables of what a launch goes over: a row for each parameter or matrix, whose blocks follow those of the row before.
#pragma once

// The row of a block: the last whose first block is not behind it.
template <class Row>
__device__ __forceinline__ const Row *row_of(const Row *table, unsigned rows, unsigned long long block) {
    unsigned low = 0, high = rows;
    while (high - low > 1) {
        const unsigned middle = (low + high) / 2;
        if (table[middle].first_block <= block) low = middle;
        else high = middle;
    }
    return table + low;
}

// The float with these bits.
__device__ __forceinline__ float float_of(unsigned long long bits) { return __uint_as_float((unsigned)bits); }
