#include <algorithm>
#include <climits>
#include <cstring>
#include <string>

#include "cuda/device.cuh"
#include "cuda/element.cuh"
#include "cuda/launch.h"
#include "cuda/packed.cuh"
#include "cuda/weight.h"

namespace sigmoe::cuda {
namespace {

// ---- kernels ---------------------------------------------------------------------------------------------------

// True when one of the word's elements is NaN or infinite.
__device__ bool not_finite(uint32_t word, WeightFormat format) {
  if (format == WeightFormat::f32) return (word & 0x7f800000u) == 0x7f800000u;
  if (format == WeightFormat::bf16) return (word & 0x7f80u) == 0x7f80u || (word & 0x7f800000u) == 0x7f800000u;
  if (format == WeightFormat::fp8)
    for (int i = 0; i < 4; ++i)
      if ((word >> (8 * i) & 0x7f) == 0x7f) return true;
  return false;
}

// rows (n_rows, row_bytes) in checkpoint order -> words of rows [row0, row0 + n_rows). One thread per word. The lowest row
// that holds a NaN or an infinity goes to bad_row.
__global__ void pack_rows(const uint8_t* rows, int row0, int n_rows, int row_bytes, WeightView w, uint8_t* tiles,
                          int* bad_row) {
  const int n_words = (row_bytes + 3) / 4;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= static_cast<int64_t>(n_rows) * n_words) return;
  const int n = row0 + static_cast<int>(index / n_words), word = static_cast<int>(index % n_words);
  const uint8_t* source = rows + (n - row0) * static_cast<int64_t>(row_bytes) + word * 4;
  const int n_bytes = min(4, row_bytes - word * 4);
  alignas(4) uint8_t in[4] = {}, out[4] = {};
  for (int i = 0; i < n_bytes; ++i) in[i] = source[i];
  if (not_finite(*reinterpret_cast<uint32_t*>(in), w.format)) atomicMin(bad_row, n);
  for (int i = 0; i < 4; ++i) {
    if (w.format == WeightFormat::fp8 || w.format == WeightFormat::int8)
      out[byte_place(i)] = in[i];
    else if (w.format == WeightFormat::int4)
      for (int k = 2 * i; k < 2 * i + 2; ++k) {
        // a short last word is padded with the code of zero
        const int code = i < n_bytes ? in[i] >> (k % 2 * 4) & 15 : 8;
        out[int4_place(k) / 2] |= code << (int4_place(k) % 2 * 4);
      }
    else
      out[i] = in[i];
  }
  int tile, row;
  locate_row(w, n, tile, row);
  *reinterpret_cast<uint32_t*>(tiles + word_offset(w, tile, row, word)) = *reinterpret_cast<uint32_t*>(out);
}

// target (F32 or BF16) <- source times its scales (n, n_blocks), where block b covers k in [bounds[b], bounds[b + 1]).
__global__ void expand(WeightView source, const float* scales, const int* bounds, int n_blocks, WeightView target,
                       uint8_t* tiles) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= static_cast<int64_t>(source.n) * source.k) return;
  const int n = static_cast<int>(index / source.k), k = static_cast<int>(index % source.k);
  int tile, row, block = 0;
  locate_row(source, n, tile, row);
  while (k >= bounds[block + 1]) ++block;
  const float value = stored_element(source, tile, row, k) * scales[static_cast<int64_t>(n) * n_blocks + block];
  const int each = word_k(target.format);
  uint8_t* word = tiles + word_offset(target, tile, row, k / each);
  if (target.format == WeightFormat::f32)
    *reinterpret_cast<float*>(word) = value;
  else
    reinterpret_cast<__nv_bfloat16*>(word)[k % each] = __float2bfloat16_rn(value);
}

__device__ uint64_t mix(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}

// Two normal deviates of 32 random bits.
__device__ float2 normal_pair(uint32_t bits) {
  const float radius = sqrtf(-2.0f * __logf(((bits & 0xffff) + 0.5f) / 65536.0f));
  float sine, cosine;
  __sincosf((bits >> 16) * (6.2831853f / 65536.0f), &sine, &cosine);
  return {radius * cosine, radius * sine};
}

constexpr float kRandomDeviation = 0.02f;  // of weights
// Of codes in a block of 128 x 128 whose largest is 448: one of 16,384 normal deviates is 4.1 from the mean.
constexpr float kFp8Deviation = 448.0f / 4.1f;

// Every stored element random: BF16 and FP8 normal, as in a checkpoint, FP8 in blocks that fill the format's range; INT8 and
// INT4 codes uniform. It is not all the same to the clock of a card at its power limit: with FP8 codes uniform over the format,
// half of its binades tiny, products of many rows take 1 to 3% longer, ours and others'.
__global__ void fill_random(WeightFormat format, uint64_t seed, int64_t n_words, uint32_t* words) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n_words;
       i += int64_t{gridDim.x} * blockDim.x) {
    const uint64_t bits = mix(seed ^ i);
    uint32_t word = static_cast<uint32_t>(bits);
    const float2 low = normal_pair(word), high = normal_pair(static_cast<uint32_t>(bits >> 32));
    if (format == WeightFormat::bf16)
      word = pack_bf16(low.x * kRandomDeviation, low.y * kRandomDeviation);
    else if (format == WeightFormat::fp8)
      word = pack_fp8(low.x * kFp8Deviation, low.y * kFp8Deviation) | pack_fp8(high.x * kFp8Deviation, high.y * kFp8Deviation)
                                                                          << 16;
    words[i] = word;
  }
}

__global__ void fill_float(float* values, int64_t n, float value) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) values[i] = value;
}

// ---- building --------------------------------------------------------------------------------------------------

// k_shift when the blocks are all 1 << k_shift wide (the last may be shorter) and tensor-core steps never straddle two
// blocks; -1 otherwise.
int uniform_k_shift(const LinearDesc& desc) {
  const auto& bounds = desc.k_bounds;
  if (bounds.size() == 2) return 30;  // one block for all of k
  const int64_t width = bounds[1] - bounds[0];
  const int64_t least = desc.format == WeightFormat::int4 ? chunk_k(WeightFormat::int4) : kGroup;
  if (width < least || (width & (width - 1)) != 0) return -1;
  for (size_t b = 1; b + 1 < bounds.size(); ++b)
    if (bounds[b] != static_cast<int64_t>(b) * width) return -1;
  if (bounds.back() > static_cast<int64_t>(bounds.size() - 1) * width) return -1;
  int shift = 0;
  while (int64_t{1} << shift < width) ++shift;
  return shift;
}

class Builder : public LinearBuilder {
 public:
  Builder(const LinearDesc& desc, WeightArena& arena, UploadQueue& uploads, bool exact)
      : desc_(desc), arena_(arena), uploads_(uploads), n_blocks_(desc.k_bounds.empty() ? 0 : desc.k_bounds.size() - 1) {
    if (desc.n <= 0 || desc.k <= 0 || desc.n > INT_MAX / 2 || desc.k > INT_MAX / 16 ||
        weight_row_bytes(desc.format, desc.k) == 0 || (desc.format == WeightFormat::int4 && desc.k % 2 != 0) ||
        (desc.gate_up && desc.n % 2 != 0))
      throw EngineError(ErrorCode::unsupported, desc.name + ": a weight of " + std::to_string(desc.n) + " x " +
                                                    std::to_string(desc.k) + " in " + weight_format_name(desc.format) +
                                                    " has no CUDA kernel");
    const bool scaled = n_blocks_ > 0;
    k_shift_ = scaled ? uniform_k_shift(desc) : 0;
    expands_ = scaled && k_shift_ < 0;
    expanded_format_ = exact ? WeightFormat::f32 : WeightFormat::bf16;
    scales_.resize(n_blocks_ * desc.n);
    weight_ = std::make_unique<CudaWeight>();
    weight_->view = shape_of(desc, desc.format);
    allocate(*weight_);
    bad_row_ = arena.take(sizeof(int), desc.name.c_str());
    CUDA_CHECK(cudaMemsetAsync(bad_row_.data, 0x7f, sizeof(int), uploads.stream()));
  }

  void put_rows(int64_t row, int64_t n_rows, const std::byte* source, size_t stride_bytes) override {
    const size_t row_bytes = weight_row_bytes(desc_.format, desc_.k);
    if (row_bytes > UploadQueue::kBytes)
      throw EngineError(ErrorCode::unsupported,
                        desc_.name + ": rows of " + std::to_string(row_bytes) + " bytes have no CUDA kernel");
    const int64_t rows_per_send = static_cast<int64_t>(UploadQueue::kBytes / row_bytes);
    for (int64_t first = 0; first < n_rows; first += rows_per_send) {
      const int64_t n = std::min(rows_per_send, n_rows - first);
      uploads_.send(
          n * row_bytes,
          [&](std::byte* pinned) {
            for (int64_t i = 0; i < n; ++i) std::memcpy(pinned + i * row_bytes, source + (first + i) * stride_bytes, row_bytes);
          },
          [&](const std::byte* rows) {
            const int64_t n_words = n * divide_up(row_bytes, 4);
            launch({uploads_.stream()}, pack_rows, divide_up(n_words, 256), 256, 0, reinterpret_cast<const uint8_t*>(rows),
                   static_cast<int>(row + first), static_cast<int>(n), static_cast<int>(row_bytes), weight_->view,
                   reinterpret_cast<uint8_t*>(weight_->tiles.data), reinterpret_cast<int*>(bad_row_.data));
          });
    }
  }

  void put_scales(int64_t row, int64_t n_rows, const float* scales) override {
    std::copy(scales, scales + n_rows * n_blocks_, scales_.begin() + row * n_blocks_);
  }

  std::unique_ptr<LinearWeight> finish() override {
    int bad_row = 0;
    CUDA_CHECK(cudaMemcpyAsync(&bad_row, bad_row_.data, sizeof(int), cudaMemcpyDeviceToHost, uploads_.stream()));
    uploads_.wait();
    if (bad_row != 0x7f7f7f7f)
      throw EngineError(ErrorCode::bad_checkpoint, desc_.name + " holds a NaN or an infinity in row " + std::to_string(bad_row),
                        "the file is damaged; fetch it again and compare its checksum");
    if (expands_)
      expand_weight();
    else if (n_blocks_ > 0)
      upload_scales();
    weight_->held = weight_->tiles.bytes + weight_->scales.bytes;
    return std::move(weight_);
  }

 private:
  void allocate(CudaWeight& weight) {
    weight.tiles = arena_.take(tile_bytes(weight.view), desc_.name.c_str());
    weight.view.tiles = reinterpret_cast<const uint4*>(weight.tiles.data);
    // INT4 padding must be the code of zero in both nibbles.
    const int padding = weight.view.format == WeightFormat::int4 ? 0x88 : 0;
    CUDA_CHECK(cudaMemsetAsync(weight.tiles.data, padding, weight.tiles.bytes, uploads_.stream()));
  }

  // Scales are often the same over 128 rows; keep one per as many rows as agree.
  void upload_scales() {
    WeightView& view = weight_->view;
    const auto row = [&](int64_t n) { return scales_.begin() + n * n_blocks_; };
    const auto agree = [&](int shift) {
      for (int64_t n = 0; n < desc_.n; ++n)
        if (!std::equal(row(n), row(n) + n_blocks_, row(n >> shift << shift))) return false;
      return true;
    };
    int shift = 7;
    while (shift > 0 && !agree(shift)) shift = shift == 7 ? 4 : 0;
    std::vector<float> kept;
    for (int64_t n = 0; n < desc_.n; n += int64_t{1} << shift) kept.insert(kept.end(), row(n), row(n) + n_blocks_);
    weight_->scales = arena_.take(kept.size() * sizeof(float), desc_.name.c_str());
    uploads_.copy(weight_->scales.data, kept.data(), kept.size() * sizeof(float));
    uploads_.wait();
    view.scales = reinterpret_cast<const float*>(weight_->scales.data);
    view.scale_columns = static_cast<int>(n_blocks_);
    view.row_shift = static_cast<uint8_t>(shift);
    view.k_shift = static_cast<uint8_t>(k_shift_);
  }

  // Blocks that a tensor-core step would straddle (tensor-parallel slices inside a block, INT4 groups below 64).
  void expand_weight() {
    auto expanded = std::make_unique<CudaWeight>();
    expanded->view = shape_of(desc_, expanded_format_);
    allocate(*expanded);
    const std::vector<int> bounds(desc_.k_bounds.begin(), desc_.k_bounds.end());
    const DeviceSpan scales = arena_.take(scales_.size() * sizeof(float), desc_.name.c_str());
    const DeviceSpan bound_span = arena_.take(bounds.size() * sizeof(int), desc_.name.c_str());
    uploads_.copy(scales.data, scales_.data(), scales.bytes);
    uploads_.copy(bound_span.data, bounds.data(), bound_span.bytes);
    launch({uploads_.stream()}, expand, divide_up(desc_.n * desc_.k, 256), 256, 0, weight_->view,
           reinterpret_cast<const float*>(scales.data), reinterpret_cast<const int*>(bound_span.data),
           static_cast<int>(n_blocks_), expanded->view, reinterpret_cast<uint8_t*>(expanded->tiles.data));
    uploads_.wait();
    weight_ = std::move(expanded);
  }

  LinearDesc desc_;
  WeightArena& arena_;
  UploadQueue& uploads_;
  size_t n_blocks_;
  int k_shift_ = 0;
  bool expands_ = false;
  WeightFormat expanded_format_;
  std::vector<float> scales_;  // (n, n_blocks)
  std::unique_ptr<CudaWeight> weight_;
  DeviceSpan bad_row_;  // (1) i32
};

}  // namespace

WeightView shape_of(const LinearDesc& desc, WeightFormat format) {
  const WeightShape shape = tiles_of(desc, format);
  WeightView view;
  view.n = shape.n;
  view.k = shape.k;
  view.format = format;
  view.gate_up = shape.gate_up;
  view.n_tiles = shape.n_tiles;
  view.n_groups = shape.n_groups;
  return view;
}

size_t tile_bytes(const WeightView& view) {
  return static_cast<size_t>(view.n_tiles) * view.n_groups * (kGroup / chunk_k(view.format)) * 512;
}

std::unique_ptr<LinearBuilder> begin_weight(const LinearDesc& desc, WeightArena& arena, UploadQueue& uploads, bool exact) {
  return std::make_unique<Builder>(desc, arena, uploads, exact);
}

std::unique_ptr<LinearWeight> random_weight(const LinearDesc& desc, uint64_t seed, WeightArena& arena, UploadQueue& uploads) {
  auto weight = std::make_unique<CudaWeight>();
  weight->view = shape_of(desc, desc.format);
  weight->tiles = arena.take(tile_bytes(weight->view), desc.name.c_str());
  weight->view.tiles = reinterpret_cast<const uint4*>(weight->tiles.data);
  launch({uploads.stream()}, fill_random, 2048, 256, 0, desc.format, seed, static_cast<int64_t>(weight->tiles.bytes / 4),
         reinterpret_cast<uint32_t*>(weight->tiles.data));
  if (desc.format != WeightFormat::f32 && desc.format != WeightFormat::bf16) {
    // Uniform codes have a standard deviation of 74 (INT8) or 4.6 (INT4); one block of 128 x 128 or of one row by 128.
    const bool fp8 = desc.format == WeightFormat::fp8;
    WeightView& view = weight->view;
    view.row_shift = fp8 ? 7 : 0;
    view.k_shift = 7;
    view.scale_columns = view.n_groups;
    const int64_t n_scales = int64_t{divide_up(desc.n, int64_t{1} << view.row_shift)} * view.scale_columns;
    weight->scales = arena.take(n_scales * sizeof(float), desc.name.c_str());
    view.scales = reinterpret_cast<const float*>(weight->scales.data);
    launch({uploads.stream()}, fill_float, divide_up(n_scales, 256), 256, 0, reinterpret_cast<float*>(weight->scales.data),
           n_scales,
           kRandomDeviation / (fp8                                 ? kFp8Deviation
                               : desc.format == WeightFormat::int8 ? 74.0f
                                                                   : 4.6f));
  }
  uploads.wait();
  weight->held = weight->tiles.bytes + weight->scales.bytes;
  return weight;
}

}  // namespace sigmoe::cuda
