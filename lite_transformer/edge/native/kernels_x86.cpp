// AVX2 (with FMA), AVX-VNNI, and AVX-512 with VNNI.
#include "kernels.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <immintrin.h>

#include <cstring>

#pragma GCC diagnostic ignored "-Wpsabi"

namespace lt {

// How far before their use weights are asked for: the processor by itself looks ahead too little, and not beyond a page.
constexpr int kAhead = 4096;

static inline int32_t four_codes(const uint8_t* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return four;
}

namespace avx2 {

#define LT_TARGET __attribute__((target("avx2,fma")))
#define LT_NAME "avx2"
constexpr int kRows = 4;
constexpr int kOffset = 0;

// Exact: a code of the input is at most 255, one of the weights at most kMostCode.
static inline __attribute__((always_inline)) LT_TARGET __m256i add_products(__m256i sum, __m256i codes, __m256i w) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, w), _mm256_set1_epi16(1)));
}

#include "tile_256.inl"
#include "kernels.inl"
#undef LT_TARGET
#undef LT_NAME

}  // namespace avx2

const Kernels* avx2_kernels() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &avx2::kTable : nullptr;
}

#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11

namespace avxvnni {

#define LT_TARGET __attribute__((target("avx2,fma,avxvnni")))
#define LT_NAME "avx-vnni"
constexpr int kRows = 4;
constexpr int kOffset = 0;

static inline __attribute__((always_inline)) LT_TARGET __m256i add_products(__m256i sum, __m256i codes, __m256i w) {
    return _mm256_dpbusd_avx_epi32(sum, codes, w);
}

#include "tile_256.inl"
#include "kernels.inl"
#undef LT_TARGET
#undef LT_NAME

}  // namespace avxvnni

const Kernels* avxvnni_kernels() {
    // cpuid leaf 7, subleaf 1: not every compiler's __builtin_cpu_supports knows the name
    unsigned a = 7, b = 0, c = 1, d = 0;
    if (avx2_kernels() == nullptr) return nullptr;
    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return (a >> 4) & 1 ? &avxvnni::kTable : nullptr;
}

#else
const Kernels* avxvnni_kernels() { return nullptr; }
#endif

namespace avx512vnni {

#define LT_TARGET __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define LT_NAME "avx512-vnni"
constexpr int kRows = 8;
constexpr int kOffset = 0;

template <int R, bool kIsFirst>
static inline __attribute__((always_inline)) LT_TARGET void dot_tile(const uint8_t* x, size_t stride, const int8_t* w,
                                                                     int count, int32_t* sums) {
    // the instruction takes five cycles: few rows need several sums each to keep it busy
    constexpr int kParts = R == 1 ? 4 : R < 4 ? 2 : 1;
    __m512i sum[R][kParts];
    for (int r = 0; r < R; ++r)
        for (int i = 0; i < kParts; ++i) sum[r][i] = _mm512_setzero_si512();
    int k = 0;
    for (; k + kParts <= count; k += kParts, w += 64 * kParts) {
        for (int i = 0; i < kParts; ++i) {
            if (kIsFirst) __builtin_prefetch(w + 64 * i + kAhead);
            const __m512i a = _mm512_loadu_si512(w + 64 * i);
            for (int r = 0; r < R; ++r)
                sum[r][i] = _mm512_dpbusd_epi32(sum[r][i], _mm512_set1_epi32(four_codes(x + r * stride + 4 * (k + i))), a);
        }
    }
    for (; k < count; ++k, w += 64) {
        const __m512i a = _mm512_loadu_si512(w);
        for (int r = 0; r < R; ++r)
            sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], _mm512_set1_epi32(four_codes(x + r * stride + 4 * k)), a);
    }
    for (int r = 0; r < R; ++r) {
        for (int i = 1; i < kParts; ++i) sum[r][0] = _mm512_add_epi32(sum[r][0], sum[r][i]);
        _mm512_storeu_si512(sums + r * kBlock, sum[r][0]);
    }
}

#include "kernels.inl"
#undef LT_TARGET
#undef LT_NAME

}  // namespace avx512vnni

const Kernels* avx512vnni_kernels() {
    const bool is_there = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vnni");
    return is_there && avx2_kernels() != nullptr ? &avx512vnni::kTable : nullptr;
}

}  // namespace lt

#else

namespace lt {
const Kernels* avx2_kernels() { return nullptr; }
const Kernels* avxvnni_kernels() { return nullptr; }
const Kernels* avx512vnni_kernels() { return nullptr; }
}  // namespace lt

#endif
