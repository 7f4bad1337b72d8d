#include "threads.h"

#include <unistd.h>

#if defined(__linux__)
#include <sched.h>
#endif

namespace lt {

namespace {

constexpr int kWaits = 4000;  // pauses before a thread sleeps: about a fifth of a millisecond

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
