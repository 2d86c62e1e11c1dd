// Values of small or plain checkpoint tensors: to float32, and the check that none is a NaN or an infinity.
#pragma once

#include <cstddef>
#include <string>

#include "engine/checkpoint/safetensors.h"

namespace sigmoe {

[[noreturn]] void bad_value(const std::string& name);  // throws bad_checkpoint

// n values of a BF16 or F32 tensor as float32; throws when one is not finite.
void to_f32(const TensorEntry& entry, const std::byte* data, int64_t n, float* out);

// Whether all of these bytes of BF16 or F32, a multiple of the element size, are finite.
bool all_finite(DType dtype, const std::byte* data, size_t bytes);

}  // namespace sigmoe
