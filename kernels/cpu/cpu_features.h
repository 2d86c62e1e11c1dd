// What this processor can run, asked once per process.
#pragma once

#include <string>
#include <vector>

#include "backend/dtype.h"

namespace sigmoe {

// The SIMD paths, slowest first. A path needs every feature its source file is compiled for.
enum class CpuPath { generic, avx2, avx512, avx512bf16, amx };

const char* cpu_path_name(CpuPath path);

std::vector<CpuPath> cpu_paths();  // of this machine, slowest first; generic is always there

// The path for BackendOptions::kernels. "auto" is the best the machine has; in the float32 mode the best without BF16
// products. Throws not_found for a path the machine lacks, invalid_argument for an unknown name.
CpuPath choose_cpu_path(const std::string& kernels, DType compute);

std::string cpu_model_name();  // "AMD EPYC 9454"
int usable_cores();            // cores the process may run on

}  // namespace sigmoe
