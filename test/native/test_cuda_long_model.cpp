// A whole model at the longest context (long_model.h) on a GPU: a prompt of 131,072 tokens read in chunks, by the CUDA kernels
// in BF16, against what the CPU computed in float32 and test/reference keeps; and CUDA's own float32 mode against the same at
// 2,048 tokens. Seconds on a GPU: SIGMOE_TEST_LONG=1 asks for it, without that and without a device the case prints why
// and returns.
#include "cuda_testing.h"
#include "long_model.h"

using namespace sigmoe;
using namespace sigmoe::testing;

namespace {

// Relative errors of the positions, the least first.
std::vector<double> errors(const std::vector<float>& found, const std::vector<float>& expected) {
  const size_t width = expected.size() / kLongLast;
  std::vector<double> all;
  for (size_t at = 0; at < expected.size(); at += width)
    all.push_back(relative_error({found.begin() + at, found.begin() + at + width},
                                 {expected.begin() + at, expected.begin() + at + width}));
  std::sort(all.begin(), all.end());
  return all;
}

}  // namespace

TEST_CASE("cuda long model: two layers, YaRN, 131,072 tokens: the last positions' logits") {
  if (!have_cuda()) return;
  if (!std::getenv("SIGMOE_TEST_LONG")) {
    std::printf("cuda long model: skipped, it takes long; set SIGMOE_TEST_LONG=1\n");
    return;
  }
  const std::unique_ptr<Backend> exact = cuda(DType::f32), fast = cuda(DType::bf16);
  const std::vector<float> brief = stored_long_model_logits(kLongShort), whole = stored_long_model_logits(kLongContext),
                           found = long_model_logits(*fast, kLongContext);
  const std::vector<double> of_exact = errors(long_model_logits(*exact, kLongShort), brief),
                            of_brief = errors(long_model_logits(*fast, kLongShort), brief), of_whole = errors(found, whole),
                            of_tokens = errors(long_model_logits(*fast, kLongContext, true), found);
  const double usual = of_brief[kLongLast / 2];
  std::printf(
      "cuda long model, relative errors of the last %d positions against the CPU in float32: float32 mode at 2,048 tokens, "
      "worst "
      "%.2e; BF16, median and worst, at 2,048 %.2e %.2e, at 131,072 %.2e %.2e; other tokens in the first half, least %.2e\n",
      kLongLast, of_exact.back(), usual, of_brief.back(), of_whole[kLongLast / 2], of_whole.back(), of_tokens.front());
  CHECK(of_exact.back() < 1e-4);
  // The goldens' rule for BF16, twice the usual error and 0.5%, with that of a short prompt as the usual one: length costs
  // nothing.
  const double allowed = 2 * usual + 0.005;
  CHECK(usual < 0.02);
  CHECK(of_whole.back() < allowed);
  CHECK(of_tokens.front() > 2 * allowed);  // what lies 65,536 tokens back counts

  // FP8 in cache and prompts: what random layers with sharp heads make of three bits. By the same rule length costs nothing,
  // for sums of a page are added up in float32.
  for (const auto& [cache, prompts] : {std::pair("auto", "fp8"), std::pair("fp8", "auto"), std::pair("fp8", "fp8")}) {
    std::unique_ptr<Backend> fp8;
    try {
      fp8 = cuda(DType::bf16, cache, "auto", prompts);
    } catch (const EngineError& error) {
      std::printf("cuda long model: FP8 skipped, %s\n", error.what());
      return;
    }
    const std::vector<double> short_one = errors(long_model_logits(*fp8, kLongShort), brief),
                              long_one = errors(long_model_logits(*fp8, kLongContext), whole);
    const double median = short_one[kLongLast / 2];
    std::printf("  cache %s, prompts %s: median and worst, at 2,048 %.2e %.2e, at 131,072 %.2e %.2e\n", cache, prompts, median,
                short_one.back(), long_one[kLongLast / 2], long_one.back());
    CHECK(median > usual);  // it is not BF16 under another name
    CHECK(median < (cache == std::string("fp8") ? 0.25 : 0.08));
    CHECK(long_one.back() < 2 * median + 0.005);
  }
}
