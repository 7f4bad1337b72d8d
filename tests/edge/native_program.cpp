// Decodes with the native engine and nothing else, for processors that have no Python here.
//
//   native_program KERNELS PLAN WEIGHTS STEPS TOKEN...
//
// Prints the kernels that there are, then for each greedy step the log-probability of every word.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

struct Engine;
struct State;
extern "C" {
const char* lt_kernels(int index);
Engine* lt_open(const int64_t*, int64_t, const uint8_t*, int64_t, int, const char*, char*, int);
void lt_close(Engine*);
State* lt_encode(Engine*, const int64_t*, int64_t, int64_t, float*, char*, int);
int lt_step(Engine*, State*, const int64_t*, const int64_t*, const int64_t*, int64_t, int64_t, int64_t, float*, int64_t*,
            float*, char*, int);
void lt_release(State*);
}

static std::vector<char> content(const char* path) {
    std::ifstream stream(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

int main(int count, char** words) {
    if (count < 6) return 2;
    for (int i = 0; lt_kernels(i) != nullptr; ++i) std::printf("%s%s", i > 0 ? " " : "", lt_kernels(i));
    std::printf("\n");
    const std::vector<char> plan_bytes = content(words[2]), weights = content(words[3]);
    std::vector<int64_t> plan(plan_bytes.size() / 8), source;
    std::memcpy(plan.data(), plan_bytes.data(), plan.size() * 8);
    for (int i = 5; i < count; ++i) source.push_back(std::atoll(words[i]));
    char error[512] = "";
    Engine* engine = lt_open(plan.data(), int64_t(plan.size()), reinterpret_cast<const uint8_t*>(weights.data()),
                             int64_t(weights.size()), 2, words[1], error, sizeof error);
    State* state = engine == nullptr ? nullptr : lt_encode(engine, source.data(), 1, int64_t(source.size()), nullptr, error, sizeof error);
    const int64_t vocabulary = plan[2], order = 0;
    int64_t token = 2;
    for (int step = 0; state != nullptr && step < std::atoi(words[4]); ++step) {
        std::vector<float> scores(vocabulary), of_word(vocabulary);
        std::vector<int64_t> found(vocabulary);
        float end;
        if (!lt_step(engine, state, &token, &order, nullptr, 1, 1, vocabulary, scores.data(), found.data(), &end, error,
                     sizeof error))
            break;
        for (int64_t i = 0; i < vocabulary; ++i) of_word[size_t(found[i])] = scores[i];
        for (const float score : of_word) std::printf("%.9g ", double(score));
        std::printf("\n");
        token = 4 + step;
    }
    std::fprintf(stderr, "%s\n", error);
    if (state != nullptr) lt_release(state);
    if (engine != nullptr) lt_close(engine);
    return error[0] == 0 ? 0 : 1;
}
