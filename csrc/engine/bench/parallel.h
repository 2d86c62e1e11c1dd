// `sigmoe bench decode` on several ranks: whole steps, and what of them goes into sums over ranks, beside what the links allow.
#pragma once

#include "engine/bench/meter.h"

namespace sigmoe::bench {

// The whole result, as run_benchmark returns it. options.engine.tensor_parallel ranks, each on a device and a thread of its
// own.
Json measure_parallel(const Options& options, const OnLine& on_line, const std::atomic<bool>* cancelled);

}  // namespace sigmoe::bench
