// Bytes to the GPU and back, in the sizes that go by kernel, by copy engine and in pieces; downloads in two halves, with work
// enqueued between them. Without a device the cases print why and pass.
#include <algorithm>
#include <random>

#include "backend/registry.h"
#include "doctest/doctest.h"

using namespace sigmoe;

namespace {

std::unique_ptr<Backend> gpu() {
  try {
    return create_backend("cuda", {});
  } catch (const EngineError& error) {
    MESSAGE("no GPU, nothing tested: " << error.what());
    return nullptr;
  }
}

std::vector<std::byte> noise(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes(n);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

}  // namespace

TEST_CASE("cuda copies: what was uploaded comes back, and nothing beside it is touched") {
  const auto backend = gpu();
  if (!backend) return;
  constexpr size_t kMargin = 256;
  for (const size_t n : {size_t{0}, size_t{1}, size_t{4}, size_t{1000}, size_t{1024}, size_t{5120}, size_t{5124},
                         size_t{64} << 10, size_t{65} << 10, size_t{9} << 20}) {
    CAPTURE(n);
    const std::vector<std::byte> around = noise(n + 2 * kMargin, 1), values = noise(n, 2);
    const DeviceBuffer buffer = backend->alloc(around.size(), "test data");
    backend->upload(buffer.data(), around.data(), around.size());
    backend->upload(buffer.as<std::byte>() + kMargin, values.data(), n);
    std::vector<std::byte> expected = around, got(around.size());
    std::copy(values.begin(), values.end(), expected.begin() + kMargin);
    backend->download(got.data(), buffer.data(), got.size());
    CHECK(got == expected);
  }
}

TEST_CASE("cuda copies: a download in two halves brings what was there when it was started") {
  const auto backend = gpu();
  if (!backend) return;
  const size_t most = Backend::kMostDownloadBytes;
  const DeviceBuffer buffer = backend->alloc(most, "test data");
  std::vector<std::byte> before;
  size_t n_before = 0;
  for (int i = 0; i < 20; ++i) {
    const size_t n = i % 3 == 0 ? most : i % 3 == 1 ? 4 * (1 + i) : 1024 * (1 + i);
    const std::vector<std::byte> values = noise(most, i);
    backend->upload(buffer.data(), values.data(), most);
    backend->start_download(i % Backend::kDownloads, buffer.data(), n);
    if (i > 0) {
      const std::byte* landed = backend->finish_download((i - 1) % Backend::kDownloads);
      CHECK(std::equal(landed, landed + n_before, before.begin()));
    }
    before = values;
    n_before = n;
  }
}
