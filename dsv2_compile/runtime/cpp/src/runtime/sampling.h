// From logits to the next token.
#pragma once

#include <cstdint>

#include "runtime/random.h"
#include "runtime/store.h"

namespace dsv2 {

// Error usage unless each value is one that it may have.
void require_valid(const Sampling& sampling);
void require_valid(const Draw& draw);

// The next draw of a sequence; greedy takes no random number.
Draw draw(const Sampling& sampling, RandomStream* random);

// The next token of one sequence: logits [vocab], finite. Greedy takes the lowest id of equal maxima.
int32_t sample(const float* logits, int64_t vocab, const Draw& draw);

}  // namespace dsv2
