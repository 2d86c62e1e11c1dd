#pragma once

#include <string>

namespace sigmoe::testing {

// Name of the error that the runtime reports after a kernel has failed.
std::string break_the_gpu();

}  // namespace sigmoe::testing
