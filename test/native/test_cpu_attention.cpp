// qk_norm_rope_store and attention of the CPU backend on every path, through pages: lengths around a page, long contexts,
// chunks, mixed batches, head sizes and group sizes. Each backend keeps its own cache; only q and the outputs compare.
#include <algorithm>
#include <limits>
#include <numeric>

#include "cpu_testing.h"

using namespace sigmoe;
using namespace sigmoe::testing;

namespace {

constexpr float kEps = 1e-6f;

struct Heads {
  int q, kv, dim, rotary;
  bool norm;
};

// A few sequences over one paged cache, fed in any pieces.
class Cache {
 public:
  Cache(Backend& backend, const Heads& heads, int n_seqs, int max_tokens, uint64_t page_order = 1)
      : backend_(backend), heads_(heads), max_pages_((max_tokens + kPageTokens - 1) / kPageTokens) {
    const DType dtype = backend.info().kv_dtype;
    const size_t bytes = static_cast<size_t>(n_seqs) * max_pages_ * heads.kv * kPageTokens * heads.dim * dtype_bytes(dtype);
    k_ = backend.alloc(bytes, "k");
    v_ = backend.alloc(bytes, "v");
    view_ = {k_.data(), v_.data(), dtype};
    pages_.resize(n_seqs * max_pages_);
    std::iota(pages_.begin(), pages_.end(), 0);
    std::shuffle(pages_.begin(), pages_.end(), std::mt19937_64(page_order));
    const std::vector<float> angles = gaussian(static_cast<size_t>(max_tokens) * std::max(heads.rotary / 2, 1), 5);
    for (const float angle : angles) {
      cos_.push_back(std::cos(angle));
      sin_.push_back(std::sin(angle));
    }
    q_norm_ = gaussian(heads.dim, 6, 0.3f);
    k_norm_ = gaussian(heads.dim, 7, 0.3f);
  }

  void poison() {  // what an earlier owner of the pages may have left
    const std::vector<uint8_t> bytes(k_.bytes(), 0xff);
    backend_.upload(k_.data(), bytes.data(), bytes.size());
    backend_.upload(v_.data(), bytes.data(), bytes.size());
  }

  struct Piece {
    int seq, first, n;  // positions [first, first + n)
  };
  // qkv of (seq, position) is a fixed random row, whatever step it comes in.
  std::vector<float> step(const std::vector<Piece>& pieces, std::vector<float>* queries = nullptr) {
    std::vector<int32_t> positions, offsets{0}, tables;
    std::vector<float> qkv;
    const size_t width = (heads_.q + 2 * heads_.kv) * heads_.dim;
    for (const Piece& piece : pieces) {
      for (int p = piece.first; p < piece.first + piece.n; ++p) {
        positions.push_back(p);
        const std::vector<float> row = gaussian(width, 1000003ull * piece.seq + p + 17);
        qkv.insert(qkv.end(), row.begin(), row.end());
      }
      offsets.push_back(static_cast<int32_t>(positions.size()));
      tables.insert(tables.end(), pages_.begin() + piece.seq * max_pages_, pages_.begin() + (piece.seq + 1) * max_pages_);
    }
    BatchView batch;
    batch.n_tokens = static_cast<int>(positions.size());
    batch.n_seqs = static_cast<int>(pieces.size());
    batch.max_pages = max_pages_;
    batch.positions = positions.data();
    batch.seq_offsets = offsets.data();
    batch.page_tables = tables.data();
    const AttentionShape shape{heads_.q, heads_.kv, heads_.dim, heads_.rotary};
    std::vector<float> q(positions.size() * heads_.q * heads_.dim), out(q.size(), -7.0f);
    backend_.qk_norm_rope_store(batch, shape, qkv.data(), heads_.norm ? q_norm_.data() : nullptr,
                                heads_.norm ? k_norm_.data() : nullptr, kEps, cos_.data(), sin_.data(), view_, q.data());
    backend_.attention(batch, shape, q.data(), view_, out.data());
    if (queries) *queries = q;
    return out;
  }

 private:
  Backend& backend_;
  Heads heads_;
  int max_pages_;
  DeviceBuffer k_, v_;
  KvView view_;
  std::vector<int32_t> pages_;
  std::vector<float> cos_, sin_, q_norm_, k_norm_;
};

double tolerance(const Backend& backend) {
  return backend.info().compute == DType::bf16 ? Tolerance::kBf16Attention : Tolerance::kFloat32;
}

constexpr Heads kSmall{4, 2, 32, 16, true};

}  // namespace

TEST_CASE("attention: head sizes, group sizes and norms agree with the reference") {
  const Heads shapes[] = {{4, 2, 32, 16, true},   {1, 1, 16, 16, true},  {8, 1, 64, 32, true},
                          {3, 1, 48, 0, false},   {5, 1, 32, 32, true},  {16, 4, 128, 64, true},
                          {14, 2, 80, 16, false}, {6, 1, 256, 64, true}, {7, 1, 16, 8, true}};
  for (const Heads& heads : shapes)
    for (const Path& path : all_paths()) {
      CAPTURE(path.label());
      CAPTURE(heads.q);
      CAPTURE(heads.dim);
      const auto backend = make_backend(path);
      // The reference keeps the same cache type, so that only arithmetic differs.
      const auto reference = make_backend({"reference", path.compute});
      Cache cache(*backend, heads, 1, 140), expected_cache(*reference, heads, 1, 140);
      for (const Cache::Piece piece : {Cache::Piece{0, 0, 133}, Cache::Piece{0, 133, 1}}) {
        std::vector<float> q, expected_q;
        const std::vector<float> out = cache.step({piece}, &q), expected = expected_cache.step({piece}, &expected_q);
        CHECK(relative_error(q, expected_q) < Tolerance::kFloat32);
        // Where a BF16 cache rounds a value the other way, the outputs differ by more than float32 sums do.
        CHECK(relative_error(out, expected) < (path.compute == DType::bf16 ? Tolerance::kBf16Attention : Tolerance::kFloat32));
      }
    }
}

TEST_CASE("attention: lengths below, at and past a page") {
  for (const Path& path : all_paths()) {
    const auto backend = make_backend(path);
    const auto reference = make_backend({"reference", path.compute});
    for (const int length : {1, 2, 15, 16, 17, 31, 33, 127, 128, 129, 255, 256, 257}) {
      CAPTURE(path.label());
      CAPTURE(length);
      Cache cache(*backend, kSmall, 1, 300), expected(*reference, kSmall, 1, 300);
      CHECK(relative_error(cache.step({{0, 0, length}}), expected.step({{0, 0, length}})) <
            (path.compute == DType::bf16 ? tolerance(*backend) + 1e-3 : Tolerance::kFloat32));
    }
  }
}

TEST_CASE("attention: chunks, neighbours, threads and page order do not change a bit") {
  constexpr int kLength = 1300;  // past one group of pages, so that single tokens are cut among threads
  for (const Path& path : all_paths()) {
    CAPTURE(path.label());
    const auto backend = make_backend(path, 2);
    Cache whole_cache(*backend, kSmall, 1, kLength);
    const std::vector<float> whole = whole_cache.step({{0, 0, kLength}});
    const size_t row = whole.size() / kLength;
    const auto rows = [&](int first, int n) {
      return std::vector<float>(whole.begin() + first * row, whole.begin() + (first + n) * row);
    };

    const auto three = make_backend(path, 3);
    Cache chunked(*three, kSmall, 3, kLength, 9);
    chunked.poison();
    int at = 0;
    for (const int chunk : {1, 1, 5, 120, 1, 1, 130, 17, 700, 18, 2, 1, 300, 1, 1, 1}) {
      CAPTURE(at);
      // A neighbour in the same step, of another length.
      const std::vector<float> out = chunked.step({{1, at / 2, 3}, {0, at, chunk}});
      CHECK(std::vector<float>(out.begin() + 3 * row, out.end()) == rows(at, chunk));
      at += chunk;
    }
    REQUIRE(at == kLength);
  }
}

TEST_CASE("attention: one token of a long context agrees with the reference") {
  constexpr int kLength = 5000;
  for (const Path& path : all_paths()) {
    CAPTURE(path.label());
    const auto backend = make_backend(path);
    const auto reference = make_backend({"reference", path.compute});
    const Heads one_head{2, 1, 16, 8, true};
    Cache fast(*backend, one_head, 1, kLength), slow(*reference, one_head, 1, kLength);
    fast.step({{0, 0, kLength - 1}});
    slow.step({{0, 0, kLength - 1}});
    CHECK(relative_error(fast.step({{0, kLength - 1, 1}}), slow.step({{0, kLength - 1, 1}})) <
          (path.compute == DType::bf16 ? 2 * tolerance(*backend) + 2e-3 : Tolerance::kFloat32));
  }
}

TEST_CASE("attention: what earlier sequences left in a page is never seen, NaN included") {
  for (const Path& path : all_paths()) {
    CAPTURE(path.label());
    const auto backend = make_backend(path);
    Cache clean(*backend, kSmall, 2, 200), dirty(*backend, kSmall, 2, 200);
    dirty.poison();
    for (const std::vector<Cache::Piece>& pieces : {std::vector<Cache::Piece>{{0, 0, 127}, {1, 0, 3}},
                                                    {{0, 127, 1}, {1, 3, 1}},
                                                    {{0, 128, 1}},
                                                    {{0, 129, 40}, {1, 4, 2}}})
      CHECK(dirty.step(pieces) == clean.step(pieces));
  }
}

TEST_CASE("attention: a head size that does not fill panels is refused with a way out") {
  const auto backend = make_backend({"auto", DType::bf16});
  Cache cache(*backend, {2, 1, 24, 8, false}, 1, 10);
  try {
    cache.step({{0, 0, 1}});
    FAIL("no error");
  } catch (const EngineError& error) {
    CHECK(error.code() == ErrorCode::unsupported);
    CHECK(error.hint().find("reference") != std::string::npos);
  }
}
