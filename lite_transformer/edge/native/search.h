// Beam search: what `search.py` says, a step at a call. It is done here, for a step sweeps the processor's caches, and
// an interpreter that goes on behind it begins slowly.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "runner.h"

namespace lt {

class Search {
  public:
    struct Settings {
        int beam, min_len, ngram;  // ngram: size of those that must not come again; 0: all may
        double lenpen;
    };
    struct Hypothesis {
        std::vector<int64_t> tokens;  // with the end of the sentence
        float score;
    };

    // source: as `Runner::encode`. limits: by sentence, tokens that a hypothesis has at most before its end.
    Search(Runner& runner, const int64_t* source, const int64_t* limits, int batch, int length,
           const Settings& settings);

    // One step; false if nothing is left to do.
    bool advance();

    // Those of a sentence, the best first.
    const std::vector<Hypothesis>& found(int sentence) const { return finished_[size_t(sentence)]; }
    int sentences() const { return int(finished_.size()); }

  private:
    struct Choice {
        float score;
        int beam;
        int64_t token;
    };

    void forbid(int row);
    void rank(int place, int beams, int count, bool must_end);
    void finish();

    Runner& runner_;
    const Settings settings_;
    std::unique_ptr<State> state_;
    std::vector<std::vector<Hypothesis>> finished_;  // by sentence
    std::vector<int64_t> limits_;

    // of the sentences that are left, beam behind beam
    std::vector<int> alive_;
    std::vector<std::vector<int64_t>> written_;
    std::vector<float> sums_;  // of log-probabilities
    std::vector<int64_t> tokens_, order_, kept_;
    bool all_are_kept_ = true;
    int step_ = 0;

    // of a step
    std::vector<std::vector<int64_t>> forbidden_;
    std::vector<float> scores_, end_scores_;
    std::vector<int64_t> candidates_;
    std::vector<Choice> best_;
};

}  // namespace lt
