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

// Whether calls of one kind gain by being shared, learned from how long they take. At first they are shared. Now and then
// two calls go the other way; the second is held against the one before them, for the first has the others to wake. The
// median of the last comparisons decides, and it must be clear to change a decision, for the clock tells much besides.
class Balance {
  public:
    // How the next call is to be done.
    bool shares() const { return shares_ != (trial_ > 0); }

    // It was done so, in this time.
    void took(double seconds);

  private:
    static constexpr int kGains = 5, kTrial = 2, kLeastPause = 4, kMostPause = 128;

    void compare(double gain);

    bool shares_ = true;
    int trial_ = 0;           // calls left that go the other way
    int pause_ = kLeastPause; // calls between two trials
    int left_ = kLeastPause;  // of them
    int slow_ = 0;            // calls one behind the other that alone would have been faster
    double usual_ = 0, alone_ = 0;
    double gains_[kGains] = {};  // times of a call alone over the time of a shared one
    int compared_ = 0;
};

// The caller works with them and takes whatever pieces the others have not taken, so that a thread that the system has
// put aside holds up no more than the piece it has begun. A thread without work waits a little, then sleeps.
class Pool {
  public:
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return workers_ + 1; }
    int sharing() const { return is_alone_ ? 1 : threads(); }  // that work on this call

    enum Kind { kEncode, kStep };

    // Around a call of so many rows: its time tells whether the next ones of about as many rows are to be shared.
    class Watch {
      public:
        Watch(Pool& pool, Kind kind, int rows);
        ~Watch();

      private:
        Pool& pool_;
        Balance& balance_;
        const int rows_;
        const std::chrono::steady_clock::time_point start_;
    };

    // work(piece) for each of `pieces`, in any order; returns when all are done. work must not throw.
    template <typename Work>
    void run(int pieces, const Work& work) {
        if (pieces <= 1 || is_alone_) {
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

    void share(int pieces, Call call, const void* context);
    bool take_one();
    void live();

    // number of the job << 32 | its pieces << 16 | the next piece: taken by compare and exchange, so that who reads a
    // job's call and context and then gets a piece of it has read those of this very job
    alignas(64) std::atomic<uint64_t> ticket_{0};
    std::atomic<Call> call_{nullptr};
    std::atomic<const void*> context_{nullptr};
    std::atomic<int> asleep_{0};
    std::atomic<bool> ends_{false};
    alignas(64) std::atomic<int> done_{0};  // what is written at each piece, apart from what waiting threads look at
    // What only the process that made it can destroy: a child made by fork has none of the threads.
    struct Shared {
        std::mutex mutex;
        std::condition_variable wake;
        std::vector<std::thread> threads;
    };
    std::unique_ptr<Shared> shared_{new Shared};
    int workers_ = 0;
    int process_;

    // of the caller alone
    static constexpr int kSizes = 21;  // powers of two of rows
    Balance balances_[2][kSizes];
    bool is_alone_ = true;
};

}  // namespace lt
