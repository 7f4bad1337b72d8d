// NEON, and NEON with the dot product instruction of ARMv8.2.
#include "kernels.h"

#if defined(__aarch64__)

#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

#include <cstring>

namespace lt {

// Four codes of the input for each of four outputs, less 128: both factors of a product are signed here.
static inline int8x16_t four_codes(const uint8_t* p) {
    uint32_t four;
    std::memcpy(&four, p, 4);
    return vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_u32(vdupq_n_u32(four)), vdupq_n_u8(0x80)));
}

namespace neon {

#define LT_TARGET
#define LT_NAME "neon"
constexpr int kRows = 4;
constexpr int kOffset = 128;
constexpr int kLanes = 8;
constexpr int runs(int) { return 1; }

template <int R, int, bool>
static inline void dot_tile(const uint8_t* x, size_t stride, const int8_t* w, size_t, int count, int32_t* sums) {
    int32x4_t sum[R][4];
    for (int r = 0; r < R; ++r)
        for (int o = 0; o < 4; ++o) sum[r][o] = vdupq_n_s32(0);
    for (int k = 0; k < count; ++k, w += 64) {
        for (int r = 0; r < R; ++r) {
            const int8x16_t four = four_codes(x + r * stride + 4 * k);
            for (int o = 0; o < 4; ++o) {
                const int8x16_t a = vld1q_s8(w + 16 * o);
                const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(four)));
                const int32x4_t high = vpaddlq_s16(vmull_high_s8(a, four));
                sum[r][o] = vaddq_s32(sum[r][o], vpaddq_s32(low, high));
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int o = 0; o < 4; ++o) vst1q_s32(sums + r * kBlock + 4 * o, sum[r][o]);
}

#include "kernels.inl"
#undef LT_TARGET
#undef LT_NAME

}  // namespace neon

const Kernels* neon_kernels() { return &neon::kTable; }

// older Clangs know the instruction only where a whole file may use it
#if !defined(__clang__) || __clang_major__ >= 16 || defined(__ARM_FEATURE_DOTPROD)

namespace dotprod {

#if defined(__clang__)
#define LT_TARGET __attribute__((target("dotprod")))
#else
#define LT_TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
#define LT_NAME "neon-dotprod"
constexpr int kRows = 4;
constexpr int kOffset = 128;
constexpr int kLanes = 8;
constexpr int runs(int) { return 1; }

template <int R, int, bool>
static inline __attribute__((always_inline)) LT_TARGET void dot_tile(const uint8_t* x, size_t stride, const int8_t* w,
                                                                     size_t, int count, int32_t* sums) {
    int32x4_t sum[R][4];
    for (int r = 0; r < R; ++r)
        for (int o = 0; o < 4; ++o) sum[r][o] = vdupq_n_s32(0);
    for (int k = 0; k < count; ++k, w += 64) {
        int8x16_t a[4];
        for (int o = 0; o < 4; ++o) a[o] = vld1q_s8(w + 16 * o);
        for (int r = 0; r < R; ++r) {
            const int8x16_t four = four_codes(x + r * stride + 4 * k);
            for (int o = 0; o < 4; ++o) sum[r][o] = vdotq_s32(sum[r][o], a[o], four);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int o = 0; o < 4; ++o) vst1q_s32(sums + r * kBlock + 4 * o, sum[r][o]);
}

#include "kernels.inl"
#undef LT_TARGET
#undef LT_NAME

}  // namespace dotprod

const Kernels* dotprod_kernels() {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & (1UL << 20) ? &dotprod::kTable : nullptr;  // HWCAP_ASIMDDP
#elif defined(__APPLE__)
    return &dotprod::kTable;  // every one that Apple sells as a computer
#else
    return nullptr;
#endif
}

#else
const Kernels* dotprod_kernels() { return nullptr; }
#endif

}  // namespace lt

#else

namespace lt {
const Kernels* neon_kernels() { return nullptr; }
const Kernels* dotprod_kernels() { return nullptr; }
}  // namespace lt

#endif
