// Feeds a Balance the times of calls: each line read is "ALONE SHARED", what the next call takes either way. Printed for
// each: 1 if it was to be shared.
#include <cstdio>

#include "threads.h"

int main() {
    lt::Balance balance;
    double alone, shared;
    while (std::scanf("%lf %lf", &alone, &shared) == 2) {
        const bool shares = balance.shares();
        balance.took(shares ? shared : alone);
        std::putchar(shares ? '1' : '0');
    }
    return 0;
}
