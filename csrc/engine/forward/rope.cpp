// cos and sin tables of partial RoPE and its YaRN extension; reference/model.md 2.3 and 2.4.
#include <algorithm>
#include <cmath>

#include "engine/checkpoint/config.h"

namespace sigmoe {
namespace {

// 0.1 m ln(factor) + 1: how much longer contexts sharpen attention.
double yarn_scale(double factor, double m) { return factor <= 1.0 ? 1.0 : 0.1 * m * std::log(factor) + 1.0; }

double attention_factor(const YarnConfig& yarn) {
  if (yarn.attention_factor > 0.0) return yarn.attention_factor;
  if (yarn.mscale > 0.0 && yarn.mscale_all_dim > 0.0)
    return yarn_scale(yarn.factor, yarn.mscale) / yarn_scale(yarn.factor, yarn.mscale_all_dim);
  return yarn_scale(yarn.factor, 1.0);
}

// Radians per position for each rotated pair.
std::vector<double> frequencies(const ModelConfig& config) {
  const int64_t half = config.rotary_dim / 2;
  const double d = static_cast<double>(config.rotary_dim);
  std::vector<double> out(half);
  for (int64_t j = 0; j < half; ++j) out[j] = std::pow(config.rope_theta, -2.0 * static_cast<double>(j) / d);
  const YarnConfig& yarn = config.yarn;
  if (yarn.factor <= 1.0) return out;

  // The pair index whose wavelength turns `rotations` times over the original context.
  const auto pair_of = [&](double rotations) {
    return d * std::log(static_cast<double>(yarn.original_context) / (rotations * 2.0 * M_PI)) /
           (2.0 * std::log(config.rope_theta));
  };
  double low = pair_of(yarn.beta_fast), high = pair_of(yarn.beta_slow);
  if (yarn.truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0);
  high = std::min(high, d - 1.0);
  if (low == high) high += 0.001;
  for (int64_t j = 0; j < half; ++j) {  // fast pairs keep their frequency, slow ones are stretched, a ramp between
    const double stretched = std::clamp((static_cast<double>(j) - low) / (high - low), 0.0, 1.0);
    out[j] = out[j] / yarn.factor * stretched + out[j] * (1.0 - stretched);
  }
  return out;
}

}  // namespace

void rope_tables(const ModelConfig& config, int64_t n_positions, std::vector<float>& cos, std::vector<float>& sin) {
  const std::vector<double> radians = frequencies(config);
  const double scale = config.yarn.factor > 1.0 ? attention_factor(config.yarn) : 1.0;
  const int64_t half = config.rotary_dim / 2;
  cos.resize(n_positions * half);
  sin.resize(n_positions * half);
  for (int64_t p = 0; p < n_positions; ++p)
    for (int64_t j = 0; j < half; ++j) {
      const double angle = static_cast<double>(p) * radians[j];
      cos[p * half + j] = static_cast<float>(std::cos(angle) * scale);
      sin[p * half + j] = static_cast<float>(std::sin(angle) * scale);
    }
}

}  // namespace sigmoe
