// What the passes of a draft model share: draft_model.cpp runs them one by one, draft_chain.cpp as one recording.
#pragma once

#include <algorithm>

#include "engine/speculation/draft_model.h"

namespace sigmoe {

constexpr int kDraftHeadRows = 64;  // rows of logits at a time
constexpr int kDraftTableStep = 8;  // page tables come in widths of as many pages, as in step_builder.cpp

inline int most_pages(std::span<const DraftTask> tasks) {
  size_t most = 0;
  for (const DraftTask& task : tasks) most = std::max(most, task.sequence->pages.size());
  return static_cast<int>(most);
}

// One pass, on the host.
struct ModelDrafter::Pass {
  std::vector<int32_t> next_ids, positions;      // (T)
  std::vector<int32_t> seq_offsets{0};           // (B + 1)
  std::vector<int32_t> page_tables;              // (B, max_pages)
  std::vector<int32_t> feature_rows, last_rows;  // (T), and the rows that are drafted from: of the first pass
  int max_pages = 0;

  void add(int64_t position, int32_t next_id) {
    positions.push_back(static_cast<int32_t>(position));
    next_ids.push_back(next_id);
  }
  void add_tables(std::span<const DraftTask> tasks) {
    max_pages = most_pages(tasks);
    max_pages = (max_pages + kDraftTableStep - 1) / kDraftTableStep * kDraftTableStep;
    page_tables.assign(tasks.size() * max_pages, 0);
    for (size_t b = 0; b < tasks.size(); ++b)
      std::copy(tasks[b].sequence->pages.begin(), tasks[b].sequence->pages.end(), page_tables.begin() + b * max_pages);
  }
};

}  // namespace sigmoe
