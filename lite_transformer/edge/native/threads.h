// Threads for pieces of work of some microseconds.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace lt {

// The caller works with them and takes whatever pieces the others have not taken, so that a thread that the system has
// put aside holds up no more than the piece it has begun. A thread without work waits a little, then sleeps. Where the
// processors have other things to do, a second thread only takes the caller's own time: it then works alone for a while.
class Pool {
  public:
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return workers_ + 1; }

    // Around a step of the caller's of so many rows: what was lost in it to others tells whether to share the next ones.
    // Steps of few rows are also tried alone and shared now and then, and go on the way that was faster; 0 rows: no step.
    class Watch {
      public:
        Watch(Pool& pool, int rows);
        ~Watch();

      private:
        Pool& pool_;
        std::chrono::steady_clock::time_point start_;
        double processor_;
        const bool is_step_;
        const bool was_alone_;
    };

    // work(piece) for each of `pieces`, in any order; returns when all are done. work must not throw.
    template <typename Work>
    void run(int pieces, const Work& work) {
        if (pieces <= 1 || workers_ == 0) {
            for (int piece = 0; piece < pieces; ++piece) work(piece);
            return;
        }
        constexpr int kMost = 0xffff;  // pieces that a ticket can count
        for (int first = 0; first < pieces; first += kMost) {
            const Part<Work> part{&work, first};
            share(pieces - first < kMost ? pieces - first : kMost, &Part<Work>::call, &part);
        }
    }

  private:
    using Call = void (*)(const void*, int);

    template <typename Work>
    struct Part {
        const Work* work;
        int first;
        static void call(const void* self, int piece) {
            const auto* part = static_cast<const Part*>(self);
            (*part->work)(part->first + piece);
        }
    };

    using Clock = std::chrono::steady_clock;

    void share(int pieces, Call call, const void* context);
    bool take_one();
    void live();

    // number of the job << 32 | its pieces << 16 | the next piece: taken by compare and exchange, so that who reads a
    // job's call and context and then gets a piece of it has read those of this very job
    std::atomic<uint64_t> ticket_{0};
    std::atomic<Call> call_{nullptr};
    std::atomic<const void*> context_{nullptr};
    std::atomic<int> done_{0};
    std::atomic<int> asleep_{0};
    std::atomic<bool> ends_{false};
    // What only the process that made it can destroy: a child made by fork has none of the threads.
    struct Shared {
        std::mutex mutex;
        std::condition_variable wake;
        std::vector<std::thread> threads;
    };
    std::unique_ptr<Shared> shared_{new Shared};
    int workers_ = 0;
    int process_;

    bool tries() const { return rows_ <= kFewRows && turn_ < 2 * kTries; }

    static constexpr int kFewRows = 16, kTries = 4, kTurns = 128;  // steps tried each way, of so many

    // of the caller alone
    Clock::time_point alone_until_{};
    Clock::duration penalty_{}, waited_{};
    int rows_ = 0, turn_ = 0;
    bool is_alone_ = false;
    Clock::duration least_alone_{}, least_shared_{};
};

}  // namespace lt
