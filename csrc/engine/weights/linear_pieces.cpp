#include "engine/weights/linear_pieces.h"

#include <algorithm>
#include <cstring>

#include "engine/checkpoint/tensor_values.h"

namespace sigmoe {

int64_t scale_block(const QuantConfig& quant, const StoredLinear& stored) {
  if (stored.method == QuantMethod::fp8_block) return quant.block_k;
  if (stored.method == QuantMethod::int4_group) return quant.group;
  return std::max<int64_t>(stored.k, 1);
}

Piece elements_of(const Part& part, const Shard& cols, LinearBuilder& builder, int64_t n_at,
                  const std::vector<float>* column_scale) {
  const WeightFormat format = part.stored.format();
  const TensorEntry& tensor = *part.stored.weight;
  const size_t stored_row = weight_row_bytes(format, part.stored.k), row_bytes = weight_row_bytes(format, cols.size());
  Piece piece{tensor.file,
              tensor.offset + static_cast<uint64_t>(part.rows.begin) * stored_row + weight_row_bytes(format, cols.begin),
              part.rows.size(),
              row_bytes,
              stored_row,
              {},
              weight_row_bytes(format, cols.begin)};
  if (column_scale)
    piece.put = [&builder, &tensor, n_at, row_bytes, column_scale](int64_t row, int64_t n, const std::byte* data,
                                                                   Scratch& scratch) {
      const auto D = static_cast<int64_t>(column_scale->size());
      scratch.resize(static_cast<size_t>(n * D));
      to_f32(tensor, data, n * D, scratch.data());
      for (int64_t i = 0; i < n * D; ++i) scratch[i] *= (*column_scale)[i % D];
      if (tensor.dtype == DType::bf16) {  // back to the stored type, in place: the narrow value never passes the wide one
        auto* bytes = reinterpret_cast<std::byte*>(scratch.data());
        for (int64_t i = 0; i < n * D; ++i) {
          const uint16_t bits = f32_to_bf16(scratch[i]);
          std::memcpy(bytes + 2 * i, &bits, 2);
        }
      }
      builder.put_rows(n_at + row, n, reinterpret_cast<const std::byte*>(scratch.data()), row_bytes);
    };
  else
    piece.put = [&builder, n_at, row_bytes](int64_t row, int64_t n, const std::byte* data, Scratch&) {
      builder.put_rows(n_at + row, n, data, row_bytes);
    };
  return piece;
}

Piece scales_of(const QuantConfig& quant, const Part& part, const Shard& cols, LinearBuilder& builder, int64_t n_at) {
  const int64_t block = scale_block(quant, part.stored);
  const TensorEntry& tensor = *part.stored.scale;
  const int64_t stored_blocks = (part.stored.k + block - 1) / block;
  const int64_t first_block = cols.begin / block, n_blocks = (cols.end + block - 1) / block - first_block;
  // Rows of W that one row of the tensor scales.
  const int64_t height = part.stored.method == QuantMethod::fp8_block    ? quant.block_n
                         : part.stored.method == QuantMethod::fp8_tensor ? part.stored.n
                                                                         : 1;
  const int64_t first_row = part.rows.begin / height, n_rows = (part.rows.end + height - 1) / height - first_row;
  const size_t row_bytes = static_cast<size_t>(stored_blocks) * dtype_bytes(tensor.dtype);
  return {tensor.file,
          tensor.offset + static_cast<uint64_t>(first_row) * row_bytes,
          n_rows,
          row_bytes,
          row_bytes,
          [&builder, &tensor, rows = part.rows, n_at, stored_blocks, first_block, n_blocks, height, first_row](
              int64_t row, int64_t n, const std::byte* data, Scratch& scratch) {
            constexpr int64_t kMostRows = 1024;  // of W at a time, so that a tensor-wide scale needs no tensor-wide memory
            scratch.resize(static_cast<size_t>(n * stored_blocks + std::min(height * n, kMostRows) * n_blocks));
            float* stored = scratch.data();
            float* expanded = stored + n * stored_blocks;
            to_f32(tensor, data, n * stored_blocks, stored);
            const int64_t begin = std::max(rows.begin, (first_row + row) * height);
            const int64_t end = std::min(rows.end, (first_row + row + n) * height);
            for (int64_t r = begin; r < end; r += kMostRows) {
              const int64_t count = std::min(kMostRows, end - r);
              for (int64_t i = 0; i < count; ++i) {
                const float* source = stored + ((r + i) / height - first_row - row) * stored_blocks + first_block;
                std::copy(source, source + n_blocks, expanded + i * n_blocks);
              }
              builder.put_scales(n_at + r - rows.begin, count, expanded);
            }
          }};
}

Piece shape_check_of(const StoredLinear& stored) {
  const TensorEntry& tensor = *stored.shape;
  return {tensor.file,
          tensor.offset,
          1,
          tensor.bytes,
          tensor.bytes,
          [&tensor, n = stored.n, k = stored.k](int64_t, int64_t, const std::byte* data, Scratch&) {
            int64_t found[2];
            if (tensor.dtype == DType::i64) {
              std::memcpy(found, data, 16);
            } else {
              int32_t narrow[2];
              std::memcpy(narrow, data, 8);
              found[0] = narrow[0], found[1] = narrow[1];
            }
            if (found[0] != n || found[1] != k)
              throw EngineError(ErrorCode::bad_checkpoint,
                                tensor.name + " says [" + std::to_string(found[0]) + ", " + std::to_string(found[1]) +
                                    "], must be [" + std::to_string(n) + ", " + std::to_string(k) + "]",
                                "the file is damaged; fetch it again and compare its checksum");
          }};
}

}  // namespace sigmoe
