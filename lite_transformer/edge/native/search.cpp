#include "search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

namespace lt {

namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

}  // namespace

Search::Search(Runner& runner, const int64_t* source, const int64_t* limits, int batch, int length,
               const Settings& settings)
    : runner_(runner), settings_(settings), limits_(limits, limits + batch) {
    if (settings.beam < 1 || settings.beam > (1 << 20) / batch)
        throw Problem("beam " + std::to_string(settings.beam) + " of " + std::to_string(batch) + " sentences");
    if (settings.min_len < 0 || settings.ngram < 0 || !std::isfinite(settings.lenpen))
        throw Problem("settings of a search that cannot be");
    for (const int64_t limit : limits_)
        if (limit < 0 || limit > (1 << 24)) throw Problem("a limit of " + std::to_string(limit) + " tokens");
    state_ = runner.encode(source, batch, length, nullptr);
    const int words = runner.words_of(*state_);
    if (2 * settings.beam > words)
        throw Problem("beam " + std::to_string(settings.beam) + " is too wide for " + std::to_string(words) + " words");
    finished_.resize(size_t(batch));
    for (int b = 0; b < batch; ++b) {
        alive_.push_back(b);
        order_.push_back(b);
    }
    tokens_.assign(size_t(batch), runner.model().end);
    sums_.assign(size_t(batch), 0.0f);
    written_.resize(size_t(batch));
}

// The tokens that would complete an n-gram which a row holds already.
void Search::forbid(int row) {
    const std::vector<int64_t>& own = written_[size_t(row)];
    std::vector<int64_t>& found = forbidden_[size_t(row)];
    found.clear();
    const size_t size = size_t(settings_.ngram);
    if (size == 0 || own.size() < size) return;
    const auto last = own.end() - std::ptrdiff_t(size - 1);
    for (auto first = own.begin(); first + std::ptrdiff_t(size) <= own.end(); ++first)
        if (std::equal(last, own.end(), first)) found.push_back(first[std::ptrdiff_t(size - 1)]);
    std::sort(found.begin(), found.end());
    found.erase(std::unique(found.begin(), found.end()), found.end());
}

// best_: the 2 N best continuations of the sentence at `place`, falling; equal ones in the order of the beams.
void Search::rank(int place, int beams, int count, bool must_end) {
    const int64_t end = runner_.model().end, pad = runner_.model().pad;
    const bool too_short = step_ < settings_.min_len;
    best_.clear();
    for (int beam = 0; beam < beams; ++beam) {
        const size_t row = size_t(place) * size_t(beams) + size_t(beam);
        const std::vector<int64_t>& banned = forbidden_[row];
        for (int i = 0; i < count; ++i) {
            int64_t token = candidates_[row * size_t(count) + size_t(i)];
            float score = scores_[row * size_t(count) + size_t(i)] + sums_[row];
            if (must_end) {
                token = i == 0 ? end : pad;
                score = i == 0 ? end_scores_[row] + sums_[row] : kNone;
            } else if (std::isnan(score) || token == pad || (too_short && token == end) ||
                       std::binary_search(banned.begin(), banned.end(), token)) {
                score = kNone;
            }
            best_.push_back({score, beam, token});
        }
    }
    const auto is_better = [](const Choice& a, const Choice& b) { return a.score > b.score; };
    std::stable_sort(best_.begin(), best_.end(), is_better);
    best_.resize(std::min(best_.size(), size_t(2 * settings_.beam)));
}

bool Search::advance() {
    if (alive_.empty()) return false;
    const int batch = int(alive_.size()), rows = int(tokens_.size()), beams = rows / batch;
    forbidden_.resize(size_t(rows));
    size_t most = 0;
    for (int row = 0; row < rows; ++row) {
        forbid(row);
        most = std::max(most, forbidden_[size_t(row)].size());
    }
    // beside what is forbidden, padding is never chosen, nor the end of a sentence that is too short
    const size_t wanted = 2 * size_t(settings_.beam) + 1 + (step_ < settings_.min_len) + most;
    const int count = int(std::min(wanted, size_t(runner_.words_of(*state_))));
    scores_.resize(size_t(rows) * size_t(count));
    candidates_.resize(scores_.size());
    end_scores_.resize(size_t(rows));
    runner_.step(*state_, tokens_.data(), order_.data(), all_are_kept_ ? nullptr : kept_.data(), batch, beams, count,
                 scores_.data(), candidates_.data(), end_scores_.data());
    const float penalty = float(std::pow(double(step_ + 1), settings_.lenpen));
    std::vector<int> alive;
    std::vector<std::vector<int64_t>> written;
    std::vector<float> sums;
    tokens_.clear();
    order_.clear();
    kept_.clear();
    for (int place = 0; place < batch; ++place) {
        const int sentence = alive_[size_t(place)], first = place * beams;
        const bool must_end = limits_[size_t(sentence)] <= step_;
        rank(place, beams, count, must_end);
        const auto ends = [&](const Choice& choice) {
            return choice.token == runner_.model().end && choice.score != kNone;
        };
        std::vector<Hypothesis>& found = finished_[size_t(sentence)];
        for (int i = 0; i < settings_.beam && found.size() < size_t(settings_.beam); ++i) {
            const Choice& choice = best_[size_t(i)];
            if (!ends(choice)) continue;
            found.push_back({written_[size_t(first + choice.beam)], choice.score / penalty});
            found.back().tokens.push_back(choice.token);
        }
        if (must_end || found.size() == size_t(settings_.beam)) continue;
        alive.push_back(sentence);
        kept_.push_back(place);
        // the best N that do not end
        std::stable_partition(best_.begin(), best_.end(), [&](const Choice& choice) { return !ends(choice); });
        for (int i = 0; i < settings_.beam; ++i) {
            const Choice& choice = best_[size_t(i)];
            written.push_back(written_[size_t(first + choice.beam)]);
            written.back().push_back(choice.token);
            sums.push_back(choice.score);
            tokens_.push_back(choice.token);
            order_.push_back(first + choice.beam);
        }
    }
    all_are_kept_ = kept_.size() == alive_.size();
    alive_ = std::move(alive);
    written_ = std::move(written);
    sums_ = std::move(sums);
    ++step_;
    if (!alive_.empty()) return true;
    finish();
    return false;
}

void Search::finish() {
    for (std::vector<Hypothesis>& found : finished_)
        std::stable_sort(found.begin(), found.end(),
                         [](const Hypothesis& a, const Hypothesis& b) { return a.score > b.score; });
    state_.reset();
}

}  // namespace lt
