// `sigmoe bench speculation` for shapes whose drafts nobody trained.
#pragma once

#include <atomic>
#include <functional>
#include <string>

namespace sigmoe::bench {

// Options and result as JSON, as of run_benchmark(); speculation.cpp says what is measured.
std::string measure_speculation(const std::string& options_json, const std::function<void(const std::string&)>& on_line,
                                const std::atomic<bool>* cancelled);

}  // namespace sigmoe::bench
