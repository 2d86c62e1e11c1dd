// Several engines of one model behind the interface of one: every request runs on one of them, whole.
#pragma once

#include <functional>
#include <memory>

#include "engine/engine.h"

namespace sigmoe {

// Loads options.data_parallel engines, one after the other, with load_one(options of one replica, its progress).
using LoadReplicaFn = std::function<std::unique_ptr<Engine>(const EngineOptions&, const Engine::ProgressFn&)>;
std::unique_ptr<Engine> load_replicas(const EngineOptions& options, const Engine::ProgressFn& on_progress,
                                      const LoadReplicaFn& load_one);

}  // namespace sigmoe
