#include "threads.h"

#include <unistd.h>

#include <algorithm>
#include <ctime>

#if defined(__linux__)
#include <sched.h>
#endif

namespace lt {

namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr int kWaits = 4000;  // pauses before a thread sleeps: about a fifth of a millisecond

// A wait for others that tells that one of them was put aside; no piece takes so long.
constexpr microseconds kLongWait{200};
// The part of a step that must be lost for the caller to work alone; for how long, the first time and at most.
constexpr double kMuch = 0.1;
constexpr milliseconds kLeastPenalty{20}, kMostPenalty{500};

// Seconds that this thread has had a processor.
double processor_time() {
    timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return double(time.tv_sec) + 1e-9 * double(time.tv_nsec);
}

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
    const Clock::time_point start = Clock::now();
    if (is_alone_ || start < alone_until_) {
        for (int piece = 0; piece < pieces; ++piece) call(context, piece);
        return;
    }
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
    if (done_.load(std::memory_order_acquire) == pieces) return;
    const Clock::time_point own_end = Clock::now();
    for (int i = 0; done_.load(std::memory_order_acquire) < pieces; ++i) {
        if (i < kWaits) {
            pause();
        } else {
            std::this_thread::yield();
        }
    }
    const Clock::duration wait = Clock::now() - own_end;
    if (wait > kLongWait && wait > 2 * (own_end - start)) waited_ += wait;
}

Pool::Watch::Watch(Pool& pool, int rows)
    : pool_(pool), start_(Clock::now()), processor_(0), is_step_(rows > 0), was_alone_(pool.is_alone_) {
    if (pool.workers_ == 0) return;
    pool.waited_ = {};
    if (!is_step_) {
        pool.is_alone_ = false;
    } else if (rows != pool.rows_ || pool.turn_ == kTurns) {
        pool.rows_ = rows;
        pool.turn_ = 0;
        pool.is_alone_ = false;
        pool.least_alone_ = pool.least_shared_ = Clock::duration::max();
    }
    if (is_step_ && pool.tries()) pool.is_alone_ = pool.turn_ % 2 == 0;
    processor_ = processor_time();
}

Pool::Watch::~Watch() {
    if (pool_.workers_ == 0) return;
    const Clock::time_point now = Clock::now();
    const std::chrono::duration<double> whole = now - start_, waited = pool_.waited_;
    const double lost = whole.count() - (processor_time() - processor_) + waited.count();
    if (lost > kMuch * whole.count()) {
        pool_.penalty_ = std::clamp<Clock::duration>(2 * pool_.penalty_, kLeastPenalty, kMostPenalty);
        pool_.alone_until_ = now + pool_.penalty_;
    } else if (now > pool_.alone_until_ + pool_.penalty_) {
        pool_.penalty_ = {};  // shared for as long without a loss
    }
    if (!is_step_) {
        pool_.is_alone_ = was_alone_;
        return;
    }
    if (pool_.tries()) {
        Clock::duration& least = pool_.is_alone_ ? pool_.least_alone_ : pool_.least_shared_;
        least = std::min(least, now - start_);
        if (pool_.turn_ + 1 == 2 * kTries) pool_.is_alone_ = pool_.least_alone_ <= pool_.least_shared_;
    }
    ++pool_.turn_;
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
    int waits = 0;
    while (!ends_.load(std::memory_order_relaxed)) {
        if (take_one()) {
            waits = 0;
        } else if (++waits < kWaits) {
            pause();
        } else {
            std::unique_lock<std::mutex> lock(shared_->mutex);
            asleep_.fetch_add(1);
            shared_->wake.wait(lock, [this] { return ends_.load() || !is_empty(ticket_.load()); });
            asleep_.fetch_sub(1);
            waits = 0;
        }
    }
}

}  // namespace lt
