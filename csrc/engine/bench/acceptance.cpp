#include "engine/bench/acceptance.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "backend/error.h"

namespace sigmoe::bench {
namespace {

[[noreturn]] void refuse(const std::string& text, int depth, const std::string& why) {
  throw EngineError(ErrorCode::invalid_argument, "acceptance '" + text + "' asked for: " + why,
                    "give the mean tokens of a step, above 1 and at most " + std::to_string(depth + 1) + ", or " +
                        std::to_string(depth + 1) + " shares with commas between them");
}

std::vector<double> numbers(const std::string& text, int depth) {
  std::vector<double> out;
  const char *at = text.data(), *end = at + text.size();
  for (;;) {
    double value = 0;
    const auto [stop, error] = std::from_chars(at, end, value);
    if (error != std::errc() || !std::isfinite(value) || value < 0) refuse(text, depth, "not a number that can be meant");
    out.push_back(value);
    if (stop == end) return out;
    if (*stop != ',') refuse(text, depth, "not numbers with commas between them");
    at = stop + 1;
  }
}

// Shares of 1, ..., depth + 1 tokens when each draft comes true with chance r once those before it have.
std::vector<double> geometric(double r, int depth) {
  std::vector<double> out;
  for (int n = 0; n < depth; ++n) out.push_back(std::pow(r, n) * (1 - r));
  out.push_back(std::pow(r, depth));
  return out;
}

double mean_of(const std::vector<double>& shares) {
  double mean = 0;
  for (size_t i = 0; i < shares.size(); ++i) mean += shares[i] * static_cast<double>(i + 1);
  return mean;
}

}  // namespace

Acceptance::Acceptance(const std::string& text, int depth) {
  const std::vector<double> given = numbers(text, depth);
  if (given.size() > 1) {
    double total = 0;
    for (const double share : given) total += share;
    if (static_cast<int>(given.size()) != depth + 1 || total <= 0)
      refuse(text, depth, "these are not the shares of 1 to " + std::to_string(depth + 1) + " tokens");
    for (const double share : given) shares_.push_back(share / total);
    return;
  }
  if (given[0] < 1 || given[0] > depth + 1) refuse(text, depth, "no chain of " + std::to_string(depth) + " drafts gives that");
  double low = 0, high = 1;
  for (int step = 0; step < 60; ++step) {
    const double middle = (low + high) / 2;
    (mean_of(geometric(middle, depth)) < given[0] ? low : high) = middle;
  }
  shares_ = geometric(low, depth);
}

double Acceptance::mean_tokens() const { return mean_of(shares_); }

uint64_t Acceptance::random(uint64_t sequence, int64_t position) {
  uint64_t x = sequence * 0x9e3779b97f4a7c15ull + static_cast<uint64_t>(position) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

int64_t Acceptance::draw(uint64_t sequence, int64_t position, int64_t n_drafts) const {
  double left = static_cast<double>(random(sequence, position) >> 11) * 0x1p-53;
  int64_t accepted = 0;
  while (accepted + 1 < static_cast<int64_t>(shares_.size()) && left >= shares_[accepted]) left -= shares_[accepted++];
  return std::min(accepted, n_drafts);
}

}  // namespace sigmoe::bench
