// A whole model at the longest context: two layers with heads as the full model has them (32 on 4 KV heads, 128 dims, half of
// them turned), YaRN to 131,072 tokens, and little else. Its weights and its text are random and the same everywhere.
#pragma once

#include <string>
#include <vector>

#include "backend/backend.h"

namespace sigmoe::testing {

constexpr int kLongContext = 131072;
constexpr int kLongShort = 2048;
constexpr int kLongLast = 64;  // positions whose logits are compared

// Logits (kLongLast, 512) of the last positions of a prompt of n_tokens, a multiple of a page, read in chunks of 8,192.
// `other_half`: the first half of the tokens are others. `progress` is told how many tokens have been read.
std::vector<float> long_model_logits(Backend& backend, int n_tokens, bool other_half = false, void (*progress)(int) = nullptr);

// What the CPU computed in float32 (sigmoe_long_model): of prompts of 2,048 and kLongContext tokens.
std::string long_model_file();
std::vector<float> stored_long_model_logits(int n_tokens);

}  // namespace sigmoe::testing
