// The quantisation part of a checkpoint's configuration, in the four dialects of reference/model.md 4.2.
#pragma once

#include "engine/checkpoint/config.h"
#include "engine/checkpoint/json_text.h"

namespace sigmoe {

// `config` holds the fields of config.json; `modelopt` those of hf_quant_config.json, or none.
QuantConfig parse_quant_config(const Fields& config, const Fields& modelopt);

}  // namespace sigmoe
