// The longest context on the CPU in float32: what test/reference/long-model.safetensors holds, and what CUDA is compared with
// (test_cuda_long_model.cpp). SIGMOE_LONG_MODEL_OUT=FILE computes the file anew, in 45 minutes on two cores.
#include <chrono>
#include <cstdio>
#include <fstream>

#include "cuda_testing.h"
#include "long_model.h"
#include "nlohmann/json.hpp"

using namespace sigmoe;
using namespace sigmoe::testing;

namespace {

void compute(const std::string& path, const std::vector<int>& lengths) {
  const auto cpu = make_backend({"auto", DType::f32});
  static const auto begin = std::chrono::steady_clock::now();
  const auto say = [](int n_read) {
    std::printf("%d tokens, %.0f s\n", n_read, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    std::fflush(stdout);
  };
  nlohmann::ordered_json header;
  std::vector<float> all;
  for (const int n : lengths) {
    const std::vector<float> logits = long_model_logits(*cpu, n, false, say);
    const size_t first = all.size() * sizeof(float);
    all.insert(all.end(), logits.begin(), logits.end());
    header["logits." + std::to_string(n)] = {{"dtype", "F32"},
                                             {"shape", {kLongLast, logits.size() / kLongLast}},
                                             {"data_offsets", {first, all.size() * sizeof(float)}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t size = text.size();
  std::ofstream out(path, std::ios::binary);
  out.write(reinterpret_cast<const char*>(&size), sizeof(size));
  out << text;
  out.write(reinterpret_cast<const char*>(all.data()), static_cast<std::streamsize>(all.size() * sizeof(float)));
  REQUIRE(out);
}

}  // namespace

TEST_CASE("long model: the logits that other devices are compared with are the CPU's") {
  if (const char* path = std::getenv("SIGMOE_LONG_MODEL_OUT")) {
    const char* most = std::getenv("SIGMOE_LONG_MODEL_TOKENS");
    compute(path, {kLongShort, most ? std::atoi(most) : kLongContext});
    return;
  }
  const std::vector<float> stored = stored_long_model_logits(kLongShort);
  for (const Path& path : all_paths()) {
    if (path.compute != DType::f32) continue;
    CAPTURE(path.kernels);
    CHECK(relative_error(long_model_logits(*make_backend(path), kLongShort), stored) < 1e-5);
  }
}
