// What the machine can do at most, for whoever compares a model with it.
#include "backend/registry.h"
#include "engine/engine.h"

namespace sigmoe {

double measure_memory_gbps() { return measure_read_gbps(0); }

}  // namespace sigmoe
