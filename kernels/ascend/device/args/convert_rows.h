// What kernel convert_rows is told by value.
#pragma once

#include <cstdint>

namespace sigmoe::ascend {

enum RowType : int32_t {
  kRowF32 = 0,
  kRowBf16 = 1,
  kRowInt8 = 2,  // target only, with one float scale per row
};

struct ConvertRowsTiling {
  int32_t n_rows;
  int32_t width;
  int32_t from_type, to_type;  // RowType
  int32_t has_from_ids, has_to_ids;
  int32_t rows_per_core;
  int32_t chunk;                   // elements of a row at a time; the whole row for INT8
  int64_t from_stride, to_stride;  // elements
};

}  // namespace sigmoe::ascend
