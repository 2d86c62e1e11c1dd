#include "backend/registry.h"

namespace sigmoe {

const char* weight_format_name(WeightFormat format) {
  switch (format) {
    case WeightFormat::f32: return "F32";
    case WeightFormat::bf16: return "BF16";
    case WeightFormat::fp8: return "FP8 E4M3";
    case WeightFormat::int4: return "INT4";
  }
  return "?";
}

std::vector<DeviceReport> list_devices() {
  return {
      {"cuda", false, "the CUDA backend is not part of this version"},
      {"ascend", false, "the Ascend backend is not part of this version"},
      {"cpu", true, describe_cpu()},
  };
}

std::unique_ptr<Backend> create_backend(const std::string& device, const BackendOptions& options) {
  if (device == "cpu") return create_cpu_backend(options);
  for (const DeviceReport& report : list_devices())
    if (report.device == device)
      throw EngineError(ErrorCode::not_found, "device '" + device + "' asked for: " + report.detail,
                        "use device 'cpu' or 'auto'");
  throw EngineError(ErrorCode::invalid_argument, "device '" + device + "' asked for: no such device",
                    "use one of auto, cpu, cuda, ascend");
}

}  // namespace sigmoe
