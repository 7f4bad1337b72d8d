// For any processor: plain C++.
#include <cstring>

#include "kernels.h"

#pragma GCC diagnostic ignored "-Wpsabi"

namespace lt {
namespace generic {

#define LT_TARGET
#define LT_NAME "generic"
constexpr int kRows = 4;
constexpr int kOffset = 0;
constexpr int kLanes = 8;
constexpr int runs(int) { return 1; }

template <int R, int, bool>
static inline void dot_tile(const uint8_t* x, size_t stride, const int8_t* w, size_t, int count, int32_t* sums) {
    std::memset(sums, 0, sizeof(int32_t) * R * kBlock);
    for (int k = 0; k < count; ++k, w += 64) {
        for (int r = 0; r < R; ++r) {
            const uint8_t* four = x + r * stride + 4 * k;
            for (int o = 0; o < kBlock; ++o) {
                int32_t sum = 0;
                for (int i = 0; i < 4; ++i) sum += int32_t(four[i]) * w[4 * o + i];
                sums[r * kBlock + o] += sum;
            }
        }
    }
}

#include "kernels.inl"

}  // namespace generic

const Kernels* generic_kernels() { return &generic::kTable; }

}  // namespace lt
