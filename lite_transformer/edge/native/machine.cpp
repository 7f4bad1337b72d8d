#include "machine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "model.h"

namespace lt {

namespace {

constexpr int kWidth = 512;                    // of a row
constexpr int kBlockBytes = kWidth * kBlock;
constexpr int kPass = 16;                      // blocks between two looks at the clock: some microseconds

}  // namespace

double multiply_adds_a_second(const Kernels& kernels, int threads, int rows, size_t size, double seconds) {
    using Clock = std::chrono::steady_clock;
    const int part = std::max(1, int(size / kBlockBytes / threads)), all = part * threads;
    Arena arena;  // in large pages, as the engine's own weights
    const auto codes = arena.take<int8_t>(size_t(all) * kBlockBytes);
    std::vector<float> scales(size_t(part) * kBlock, 1.0f), scale(static_cast<size_t>(rows), 1.0f);
    std::vector<int32_t> sums(size_t(part) * kBlock), zero(static_cast<size_t>(rows));
    std::vector<uint8_t> input(size_t(rows) * kWidth, 3);
    std::atomic<int> ready{0};
    std::vector<double> speeds(static_cast<size_t>(threads));
    const auto go = [&](int number) {
        const PackedView weights{kWidth,        part * kBlock, codes.get() + size_t(number) * part * kBlockBytes, nullptr,
                                 scales.data(), sums.data(),   nullptr};
        const CodedRows x{input.data(), kWidth, scale.data(), zero.data()};
        std::vector<float> y(size_t(rows) * part * kBlock);
        ++ready;
        while (ready.load() < threads) {
        }
        const Clock::time_point start = Clock::now();
        std::chrono::duration<double> elapsed{0};
        double blocks = 0;
        for (int first = 0; elapsed.count() < seconds; first = first + kPass < part ? first + kPass : 0) {
            const int last = std::min(first + kPass, part);
            kernels.linear_int8(weights, x, rows, first, last, false, y.data(), size_t(part) * kBlock);
            blocks += last - first;
            elapsed = Clock::now() - start;
        }
        speeds[size_t(number)] = blocks * kBlockBytes * rows / elapsed.count();
    };
    std::vector<std::thread> others;
    for (int number = 1; number < threads; ++number) others.emplace_back(go, number);
    go(0);
    for (std::thread& other : others) other.join();
    double speed = 0;
    for (const double one : speeds) speed += one;
    return speed;
}

}  // namespace lt
