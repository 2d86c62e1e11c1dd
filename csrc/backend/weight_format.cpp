#include "backend/backend.h"

namespace sigmoe {

const char* weight_format_name(WeightFormat format) {
  switch (format) {
    case WeightFormat::f32: return "F32";
    case WeightFormat::bf16: return "BF16";
    case WeightFormat::fp8: return "FP8 E4M3";
    case WeightFormat::int4: return "INT4";
    case WeightFormat::int8: return "INT8";
  }
  return "?";
}

}  // namespace sigmoe
