// `dot_tile` in registers of 256 bits. Included once for each instruction set that has them, before kernels.inl, after
//   add_products(sum, codes, w): sum[8] and the products of eight outputs' four weights each with four codes.
// Eight outputs fill a register, so a block takes two.

template <int R, bool kIsFirst>
static inline __attribute__((always_inline)) LT_TARGET void dot_tile(const uint8_t* x, size_t stride, const int8_t* w,
                                                                     int count, int32_t* sums) {
    __m256i low[R], high[R];
    for (int r = 0; r < R; ++r) low[r] = high[r] = _mm256_setzero_si256();
    for (int k = 0; k < count; ++k, w += 64) {
        if (kIsFirst) __builtin_prefetch(w + kAhead);
        const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
        const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 32));
        for (int r = 0; r < R; ++r) {
            const __m256i codes = _mm256_set1_epi32(four_codes(x + r * stride + 4 * k));
            low[r] = add_products(low[r], codes, a);
            high[r] = add_products(high[r], codes, b);
        }
    }
    for (int r = 0; r < R; ++r) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + r * kBlock), low[r]);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + r * kBlock + 8), high[r]);
    }
}
