// What the processors give, whatever the engine makes of it.
#pragma once

#include "kernels.h"

namespace lt {

// Multiply-adds a second of `threads` that each go through int8 weights again and again for about so long, `rows` of an
// input at a time. One row: as many bytes of weights a second.
// size: bytes of the weights; of all threads together, each with a part of its own, so that they read nothing twice.
double multiply_adds_a_second(const Kernels& kernels, int threads, int rows, size_t size, double seconds);

}  // namespace lt
