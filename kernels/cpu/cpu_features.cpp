#include "cpu/cpu_features.h"

#include <algorithm>
#include <fstream>
#include <thread>

#include "backend/error.h"
#include "backend/registry.h"

#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace sigmoe {
namespace {

#if defined(__x86_64__)
// Linux hands the tile registers to a process only when it asks; the permission covers threads made afterwards too.
bool request_tile_permission() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool has_amx_bf16() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  return (edx & kAmxBf16) && (edx & kAmxTile) && request_tile_permission();
}
#endif

std::vector<CpuPath> detect_paths() {
  std::vector<CpuPath> paths{CpuPath::generic};
#if defined(__x86_64__)
  __builtin_cpu_init();  // these checks include that the operating system saves the wide registers
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return paths;
  paths.push_back(CpuPath::avx2);
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl") ||
      !__builtin_cpu_supports("avx512dq"))
    return paths;
  paths.push_back(CpuPath::avx512);
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vbmi")) return paths;
  paths.push_back(CpuPath::avx512bf16);
  if (has_amx_bf16()) paths.push_back(CpuPath::amx);
#endif
  return paths;
}

std::string joined(const std::vector<CpuPath>& paths) {
  std::string text;
  for (const CpuPath path : paths) text += (text.empty() ? "" : " ") + std::string(cpu_path_name(path));
  return text;
}

}  // namespace

const char* cpu_path_name(CpuPath path) {
  switch (path) {
    case CpuPath::generic: return "generic";
    case CpuPath::avx2: return "avx2";
    case CpuPath::avx512: return "avx512";
    case CpuPath::avx512bf16: return "avx512bf16";
    case CpuPath::amx: return "amx";
  }
  return "?";
}

std::vector<CpuPath> cpu_paths() {
  static const std::vector<CpuPath> paths = detect_paths();
  return paths;
}

CpuPath choose_cpu_path(const std::string& kernels, DType compute) {
  const std::vector<CpuPath> paths = cpu_paths();
  CpuPath path = paths.back();
  if (kernels != "auto") {
    constexpr CpuPath kAll[] = {CpuPath::generic, CpuPath::avx2, CpuPath::avx512, CpuPath::avx512bf16, CpuPath::amx};
    const auto named = std::find_if(std::begin(kAll), std::end(kAll), [&](CpuPath p) { return kernels == cpu_path_name(p); });
    if (named == std::end(kAll))
      throw EngineError(ErrorCode::invalid_argument, "kernels '" + kernels + "' asked for: no such path",
                        "use one of auto, reference, generic, avx2, avx512, avx512bf16, amx");
    if (std::find(paths.begin(), paths.end(), *named) == paths.end())
      throw EngineError(ErrorCode::not_found, "kernels '" + kernels + "' asked for: this machine has " + joined(paths),
                        "use kernels 'auto'");
    path = *named;
  }
  // The float32 mode multiplies in float32, so the BF16 paths run the kernels of the widest float32 path.
  return compute == DType::f32 ? std::min(path, CpuPath::avx512) : path;
}

std::string cpu_model_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.rfind("model name", 0) == 0 && line.find(": ") != std::string::npos) return line.substr(line.find(": ") + 2);
  return "CPU";
}

int usable_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(CPU_COUNT(&set), 1);
#endif
  return std::max(static_cast<int>(std::thread::hardware_concurrency()), 1);
}

std::string describe_cpu() {
  const int cores = usable_cores();
  return cpu_model_name() + ": " + joined(cpu_paths()) + ", " + std::to_string(cores) + (cores == 1 ? " core" : " cores");
}

}  // namespace sigmoe
