#include "threads.h"

#include <unistd.h>

#include <algorithm>

#if defined(__linux__)
#include <sched.h>
#endif

namespace lt {

namespace {

using Clock = std::chrono::steady_clock;

// A thread sleeps after so long without work: longer than a caller's own work between two steps, for waking takes the
// system about a tenth of that.
constexpr std::chrono::microseconds kAwake{500};
constexpr int kPauses = 64;    // between two looks at the clock
constexpr int kWaits = 4000;   // pauses before the caller leaves its processor to a thread that has a piece of its
constexpr double kClear = 0.03;  // a gain or loss that changes a decision
constexpr double kSlow = 1.25;   // times as long as alone: to be looked at soon

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

int processors() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    const unsigned found = std::thread::hardware_concurrency();
    return found == 0 ? 1 : int(found);
}

bool is_empty(uint64_t ticket) { return (ticket & 0xffff) >= (ticket >> 16 & 0xffff); }

}  // namespace

void Balance::took(double seconds) {
    if (trial_ == 0) {
        usual_ = seconds;
        if (!shares_) alone_ = seconds;
        slow_ = shares_ && alone_ > 0 && seconds > kSlow * alone_ ? slow_ + 1 : 0;
        if (--left_ <= 0 || slow_ == 2) trial_ = kTrial;
        return;
    }
    if (--trial_ > 0) return;
    if (shares_) alone_ = seconds;
    compare(shares_ ? seconds / usual_ : usual_ / seconds);
}

void Balance::compare(double gain) {
    gains_[compared_++ % kGains] = gain;
    const int count = std::min(compared_, kGains);
    double sorted[kGains];
    for (int i = 0; i < count; ++i) {
        int place = i;
        for (; place > 0 && sorted[place - 1] > gains_[i]; --place) sorted[place] = sorted[place - 1];
        sorted[place] = gains_[i];
    }
    const double median = sorted[count / 2];
    pause_ = (gain > 1) == shares_ ? std::min(2 * pause_, kMostPause) : kLeastPause;
    if (2 * count > kGains && (shares_ ? median < 1 - kClear : median > 1 + kClear)) shares_ = !shares_;
    left_ = pause_;
    slow_ = 0;
}

Pool::Pool(int threads) : process_(int(getpid())) {
    const int most = processors();  // more would only wait for each other
    for (; workers_ + 1 < threads && workers_ + 1 < most; ++workers_)
        shared_->threads.emplace_back(&Pool::live, this);
}

Pool::~Pool() {
    if (process_ != int(getpid())) {
        (void)shared_.release();  // waiting for threads that are not there would never end
        return;
    }
    {
        const std::lock_guard<std::mutex> lock(shared_->mutex);
        ends_.store(true);
    }
    shared_->wake.notify_all();
    for (auto& thread : shared_->threads) thread.join();
}

void Pool::share(int pieces, Call call, const void* context) {
    call_.store(call, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    const uint64_t job = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
    ticket_.store(job << 32 | uint64_t(pieces) << 16);
    if (asleep_.load() > 0 && process_ == int(getpid())) {
        { const std::lock_guard<std::mutex> lock(shared_->mutex); }
        shared_->wake.notify_all();
    }
    while (take_one()) {
    }
    for (int i = 0; done_.load(std::memory_order_acquire) < pieces; ++i) {
        if (i < kWaits) {
            pause();
        } else {
            std::this_thread::yield();
        }
    }
}

Pool::Watch::Watch(Pool& pool, Kind kind, int rows)
    : pool_(pool),
      balance_(pool.balances_[kind][std::min(kSizes - 1, 31 - __builtin_clz(unsigned(rows)))]),
      rows_(rows),
      start_(Clock::now()) {
    pool.is_alone_ = pool.workers_ == 0 || !balance_.shares();
}

Pool::Watch::~Watch() {
    const std::chrono::duration<double> time = Clock::now() - start_;
    balance_.took(std::max(time.count(), 1e-9) / rows_);
    pool_.is_alone_ = true;
}

bool Pool::take_one() {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    for (;;) {
        if (is_empty(ticket)) return false;
        const Call call = call_.load(std::memory_order_relaxed);
        const void* context = context_.load(std::memory_order_relaxed);
        if (ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
            call(context, int(ticket & 0xffff));
            done_.fetch_add(1, std::memory_order_release);
            return true;
        }
    }
}

void Pool::live() {
    Clock::time_point last = Clock::now();
    int waits = 0;
    while (!ends_.load(std::memory_order_relaxed)) {
        if (take_one()) {
            waits = -1;
        } else if (++waits % kPauses != 0) {
            pause();
        } else if (waits == 0) {
            last = Clock::now();
        } else if (Clock::now() - last > kAwake) {
            std::unique_lock<std::mutex> lock(shared_->mutex);
            asleep_.fetch_add(1);
            shared_->wake.wait(lock, [this] { return ends_.load() || !is_empty(ticket_.load()); });
            asleep_.fetch_sub(1);
            waits = -1;
        }
    }
}

}  // namespace lt
