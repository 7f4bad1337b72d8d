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

#define LT_VECTORS "vectors_256.inl"

namespace avx2 {

#define LT_TARGET __attribute__((target("avx2,fma")))
#define LT_NAME "avx2"
constexpr int kRows = 4;
constexpr int kOffset = 0;
constexpr int kLanes = 8;
constexpr int runs(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

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
constexpr int kLanes = 8;
constexpr int runs(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

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
constexpr int kLanes = 16;
constexpr int runs(int) { return 2; }

template <int R, int B, bool kIsFirst>
static inline __attribute__((always_inline)) LT_TARGET void dot_tile(const uint8_t* x, size_t stride, const int8_t* w,
                                                                     size_t gap, int count, int32_t* sums) {
    __m512i sum[B][R];
    for (int b = 0; b < B; ++b)
        for (int r = 0; r < R; ++r) sum[b][r] = _mm512_setzero_si512();
    for (int k = 0; k < count; ++k, w += 64) {
        __m512i own[B];
        for (int b = 0; b < B; ++b) {
            if (kIsFirst) __builtin_prefetch(w + b * gap + kAhead);
            own[b] = _mm512_loadu_si512(w + b * gap);
        }
        for (int r = 0; r < R; ++r) {
            const __m512i codes = _mm512_set1_epi32(four_codes(x + r * stride + 4 * k));
            for (int b = 0; b < B; ++b) sum[b][r] = _mm512_dpbusd_epi32(sum[b][r], codes, own[b]);
        }
    }
    for (int b = 0; b < B; ++b)
        for (int r = 0; r < R; ++r) _mm512_storeu_si512(sums + (b * R + r) * kBlock, sum[b][r]);
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
