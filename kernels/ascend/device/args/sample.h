// What kernel sample is told by value, and where the fields of backend.h's SampleRow lie in its bytes.
#pragma once

#include <cstdint>

namespace sigmoe::ascend {

constexpr int32_t kSampleChunk = 4096;  // logits that a core looks at together: integer sums of 12 bits each fit a float
constexpr int32_t kSampleFew = 1024;    // candidates that it sorts
constexpr int32_t kSampleTop = 20;      // alternatives reported

// Words of 4 bytes; the seed takes two.
enum SampleRowWord : int32_t {
  kRowSlot = 0,
  kRowPosition = 1,
  kRowSeed = 2,
  kRowTemperature = 4,
  kRowTopP = 5,
  kRowMinP = 6,
  kRowTopK = 7,
  kRowRepetition = 8,
  kRowPresence = 9,
  kRowFrequency = 10,
  kRowLogprobs = 11,
  kRowBiasBegin = 12,
  kRowBiasEnd = 13,
  kRowBanBegin = 14,
  kRowBanEnd = 15,
  kRowMask = 16,
  kRowForced = 17,
  kRowIfPrevious = 18,
  kRowWords = 20,
};

struct SampleTiling {
  int32_t n_rows;      // R
  int32_t vocab_size;  // V
  int32_t pitch;       // floats of a core's workspace, V in whole repeats
  int32_t mask_words;  // of a row of masks
};

}  // namespace sigmoe::ascend
