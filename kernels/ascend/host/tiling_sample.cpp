#include "ascend/host/tiling_sample.h"

#include <algorithm>
#include <cstddef>
#include <string>

namespace sigmoe::ascend {
namespace {

constexpr bool at(size_t offset, SampleRowWord word) { return offset == sizeof(int32_t) * word; }

// The kernel reads rows as words.
static_assert(sizeof(SampleRow) == sizeof(int32_t) * kRowWords && kSampleTop == kMaxLogprobs);
static_assert(at(offsetof(SampleRow, slot), kRowSlot) && at(offsetof(SampleRow, position), kRowPosition) &&
              at(offsetof(SampleRow, seed), kRowSeed) && at(offsetof(SampleRow, temperature), kRowTemperature) &&
              at(offsetof(SampleRow, top_p), kRowTopP) && at(offsetof(SampleRow, min_p), kRowMinP) &&
              at(offsetof(SampleRow, top_k), kRowTopK) && at(offsetof(SampleRow, repetition_penalty), kRowRepetition) &&
              at(offsetof(SampleRow, presence_penalty), kRowPresence) &&
              at(offsetof(SampleRow, frequency_penalty), kRowFrequency) && at(offsetof(SampleRow, n_logprobs), kRowLogprobs) &&
              at(offsetof(SampleRow, bias_begin), kRowBiasBegin) && at(offsetof(SampleRow, bias_end), kRowBiasEnd) &&
              at(offsetof(SampleRow, ban_begin), kRowBanBegin) && at(offsetof(SampleRow, ban_end), kRowBanEnd) &&
              at(offsetof(SampleRow, mask_row), kRowMask) && at(offsetof(SampleRow, forced_token), kRowForced) &&
              at(offsetof(SampleRow, if_previous), kRowIfPrevious));

constexpr int kMaxVocab = 1 << 22;  // sums of weights stay below 2^63

}  // namespace

SampleTiling make_sample_tiling(int n_rows, int vocab_size) {
  if (vocab_size < 1 || vocab_size > kMaxVocab)
    throw EngineError(ErrorCode::unsupported, "the Ascend sampler: a vocabulary of " + std::to_string(vocab_size) +
                                                  ", of which there may be 1 to " + std::to_string(kMaxVocab));
  return {n_rows, vocab_size, (vocab_size + 63) / 64 * 64, mask_words(vocab_size)};
}

int32_t ub_bytes(const SampleTiling&) {
  constexpr int32_t kFloats = 4 * kSampleChunk + kSampleChunk / 32 + 64 +  // queues: logits, counts and a result; a mask
                              4 * kSampleChunk + 2 * kSampleChunk / 32 + 256 + 40 +  // work, bits, scratch, sums
                              2 * kSampleFew + 4 * kSampleFew;                       // candidates, records
  return kFloats * 4;
}

uint32_t sample_blocks(const SampleTiling& tiling, const Cores& cores) {
  return static_cast<uint32_t>(std::clamp(tiling.n_rows, 1, cores.aiv));
}

size_t sample_workspace_bytes(const SampleTiling& tiling, const Cores& cores) {
  return size_t{sample_blocks(tiling, cores)} * tiling.pitch * sizeof(float);
}

}  // namespace sigmoe::ascend
