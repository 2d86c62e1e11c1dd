// A slice of one stored linear as pieces of a WeightStream: its elements and scales on their way into a LinearBuilder, and the
// shape that a packed one repeats.
#pragma once

#include <vector>

#include "engine/checkpoint/checkpoint_spec.h"
#include "engine/weights/weight_stream.h"

namespace sigmoe {

// Rows [row, ...) of a stored linear, to lie one part under the other in one weight.
struct Part {
  StoredLinear stored;
  Shard rows;
};

// Elements of k that share a scale; k itself where a row has one.
int64_t scale_block(const QuantConfig& quant, const StoredLinear& stored);

// Columns `cols` of the part, to rows n_at and on of the weight; each column by its scale unless column_scale is null, which is
// looked at when the stream runs.
Piece elements_of(const Part& part, const Shard& cols, LinearBuilder& builder, int64_t n_at,
                  const std::vector<float>* column_scale);

// Scale tensors (rows of scales, blocks of k) to one scale per row of the slice and block of its columns.
Piece scales_of(const QuantConfig& quant, const Part& part, const Shard& cols, LinearBuilder& builder, int64_t n_at);

// weight_shape repeats what the other tensors' shapes already say; a packed tensor that disagrees is of another layer.
Piece shape_check_of(const StoredLinear& stored);

}  // namespace sigmoe
