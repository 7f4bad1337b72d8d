// `dot_tile` in registers of 256 bits. Included once for each instruction set that has them, before kernels.inl, after
//   add_products(sum, codes, w): sum[8] and the products of eight outputs' four weights each with four codes.
// Eight outputs fill a register, so a block takes two.

template <int R, int B, bool kIsFirst>
static inline __attribute__((always_inline)) LT_TARGET void dot_tile(const uint8_t* x, size_t stride, const int8_t* w,
                                                                     size_t gap, int count, int32_t* sums) {
    __m256i low[B][R], high[B][R];
    for (int b = 0; b < B; ++b)
        for (int r = 0; r < R; ++r) low[b][r] = high[b][r] = _mm256_setzero_si256();
    for (int k = 0; k < count; ++k, w += 64) {
        for (int b = 0; b < B; ++b) {
            const int8_t* const own = w + b * gap;
            if (kIsFirst) __builtin_prefetch(own + kAhead);
            const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(own));
            const __m256i second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(own + 32));
            for (int r = 0; r < R; ++r) {
                const __m256i codes = _mm256_set1_epi32(four_codes(x + r * stride + 4 * k));
                low[b][r] = add_products(low[b][r], codes, first);
                high[b][r] = add_products(high[b][r], codes, second);
            }
        }
    }
    for (int b = 0; b < B; ++b) {
        for (int r = 0; r < R; ++r) {
            int32_t* const place = sums + (b * R + r) * kBlock;
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(place), low[b][r]);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(place + 8), high[b][r]);
        }
    }
}
