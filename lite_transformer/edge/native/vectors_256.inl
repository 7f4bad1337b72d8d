// What compilers make little of, in the processor's own words: AVX2. The other way: kernels.inl.

LT_INLINE F8 larger(F8 a, F8 b) { return (F8)_mm256_max_ps((__m256)a, (__m256)b); }
LT_INLINE F8 smaller(F8 a, F8 b) { return (F8)_mm256_min_ps((__m256)a, (__m256)b); }

LT_INLINE I8 whole(F8 v) { return (I8)_mm256_cvtps_epi32((__m256)v); }

LT_INLINE void store_codes(uint8_t* p, I8 codes) {
    const __m256i words = _mm256_packs_epi32((__m256i)codes, (__m256i)codes);
    const __m256i bytes = _mm256_packus_epi16(words, words);
    const int32_t four[2] = {_mm256_extract_epi32(bytes, 0), _mm256_extract_epi32(bytes, 4)};
    std::memcpy(p, four, 8);
}

LT_INLINE F8 totals(const F8* v) {
    const __m256 a = _mm256_hadd_ps((__m256)v[0], (__m256)v[1]), b = _mm256_hadd_ps((__m256)v[2], (__m256)v[3]);
    const __m256 c = _mm256_hadd_ps((__m256)v[4], (__m256)v[5]), d = _mm256_hadd_ps((__m256)v[6], (__m256)v[7]);
    const __m256 low = _mm256_hadd_ps(a, b), high = _mm256_hadd_ps(c, d);
    return (F8)_mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}
