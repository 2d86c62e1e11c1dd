// Sampling one row of logits on the CPU, and the definitions every implementation of it shares: the random stream, and
// weights that are integers. Integer sums do not depend on their order, so a path that never sorts the vocabulary picks
// the very token that sorting it would.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <vector>

#include "backend/backend.h"

namespace sigmoe {

// Philox4x32-10: four random words from a counter and a key, the same on every device.
inline std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter[0], b = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

// floor(u * total) for the row's uniform u in [0, 1), exact to 64 bits.
inline uint64_t draw_below(uint64_t total, uint64_t seed, int32_t position) {
  const auto words =
      philox4x32({static_cast<uint32_t>(position), 0, 0, 0}, {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  const uint64_t u = static_cast<uint64_t>(words[1]) << 32 | words[0];
  return static_cast<uint64_t>(static_cast<unsigned __int128>(u) * total >> 64);
}

constexpr double kWeightOne = 0x1p40;  // the weight of the most likely token; a vocabulary of 2^23 sums below 2^63

// round(2^40 exp(x)) for x <= 0, relative error below 3e-7 down to exp(-14): plain arithmetic, so that loops over it vectorise
// and every compilation of it gives the same bits.
inline uint64_t sample_weight(float x) {
  x = x > -40.0f ? x : -40.0f;           // rounds to zero there, and -inf and NaN go the same way
  constexpr float kRound = 12582912.0f;  // adding 1.5 * 2^23 leaves an integer in the low bits
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // |r| <= ln(2) / 2
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;                                                                               // exp(r)
  const float power = std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) - 0x4b400000u + 127u) << 23);  // 2^n
  // Adding 2^52 to a double below it leaves the rounded integer in the low bits.
  const double fixed = static_cast<double>(p * power) * kWeightOne + 0x1p52;
  return std::bit_cast<uint64_t>(fixed) - 0x4330000000000000u;
}

// A logit as the sampler sees it: NaN never wins, and an infinity is only a very large number.
inline float finite_logit(float x) {
  constexpr float kLargest = 3.402823466e38f;
  const float bounded = x < kLargest ? x : kLargest;
  return x == x ? bounded : -std::bit_cast<float>(0x7f800000u);
}

// What repetition, presence and frequency make of a logit. count as in SampleArgs::counts.
inline float penalised(float x, uint32_t count, float repetition, float presence, float frequency) {
  const float divided = x / repetition, multiplied = x * repetition;  // both, so that the choice is a blend
  const float repeated = x > 0.0f ? divided : multiplied;
  const int32_t generated = static_cast<int32_t>(count & 0x7fffffffu);
  const float once = generated > 0 ? presence : 0.0f;
  return finite_logit((count != 0 ? repeated : x) - (once + frequency * static_cast<float>(generated)));
}

struct SampleCandidate {
  float x = 0.0f;  // penalised logit
  int32_t id = 0;
  uint64_t weight = 0;
};

// One thread's reusable memory.
struct SampleScratch {
  std::vector<float> x;  // (V)
  std::vector<SampleCandidate> candidates;
};

// Row `row` of Backend::sample, whole: token, counts and logprobs. The rows of its chain before it have been done.
void sample_row(const SampleArgs& args, int row, SampleScratch& scratch);

}  // namespace sigmoe
