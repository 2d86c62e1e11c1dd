// Which rows lie in BF16 where the seam speaks of floats, and whether a recorded step fits them: what its kernels read, BF16 or
// floats, was decided when it was recorded. No CUDA in here (test/native/test_brief_rows.cpp).
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

namespace sigmoe::cuda {

// What many rows left at an op's output in BF16, half the bytes of the floats that the seam speaks of: experts() its slots,
// linear() its products, qk_norm_rope_store() its queries, scaled as attention wants them. The op that reads them next in a
// layer takes them so; for anyone else they become floats first (CudaBackend::floats()).
struct BriefRows {
  void* data = nullptr;
  size_t n = 0;         // of them, in room for as many floats
  float factor = 1.0f;  // that the values were multiplied by
  bool holds(const void* address) const { return address >= data && address < static_cast<const float*>(data) + n; }
  bool operator==(const BriefRows&) const = default;
};

class BriefList {
  enum class Act { leave, forget, find, take };
  struct Entry {
    Act act;
    const void* at;
    BriefRows rows;  // what is left there, or what was found there
  };

 public:
  void leave(const BriefRows& rows) { run(Act::leave, rows.data, rows); }
  void forget(const void* data) { run(Act::forget, data); }  // those that begin there
  bool begins(const void* data) { return run(Act::find, data).data != nullptr; }
  // Those that hold an address, out of the list: the caller makes floats of them. data null: there are none.
  BriefRows take(const void* address) { return run(Act::take, address); }
  // What comes to lie in this memory next is not theirs.
  void forget_all(const void* memory, size_t bytes) {
    std::erase_if(rows_, [&](const BriefRows& each) {
      return each.data >= memory && each.data < static_cast<const std::byte*>(memory) + bytes;
    });
  }

  // What the ops of a step did to the list and asked of it.
  struct Recording {
    std::vector<BriefRows> found, left;
    std::vector<Entry> entries;
  };
  void begin_recording() { now_ = Recording{rows_, {}, {}}; }
  // The list is as it was found: nothing has run.
  Recording end_recording() {
    Recording done = *std::exchange(now_, std::nullopt);
    done.left = std::exchange(rows_, done.found);
    return done;
  }
  // Leaves the list as the ops would. False, and the list as it is, where they would find other rows than those recorded.
  bool replay(const Recording& recording) {
    std::vector<BriefRows> rows = rows_;
    if (rows == recording.found)
      rows = recording.left;
    else
      for (const Entry& entry : recording.entries)
        if (run_on(rows, entry.act, entry.at, entry.rows) != entry.rows) return false;
    rows_ = std::move(rows);
    return true;
  }

 private:
  BriefRows run(Act act, const void* at, const BriefRows& left = {}) {
    const BriefRows rows = run_on(rows_, act, at, left);
    if (now_) now_->entries.push_back({act, at, rows});
    return rows;
  }
  static BriefRows run_on(std::vector<BriefRows>& all, Act act, const void* at, const BriefRows& left) {
    if (act == Act::leave) return all.emplace_back(left);
    if (act == Act::forget) {
      std::erase_if(all, [&](const BriefRows& each) { return each.data == at; });
      return {};
    }
    const auto found =
        std::ranges::find_if(all, [&](const BriefRows& each) { return act == Act::take ? each.holds(at) : each.data == at; });
    if (found == all.end()) return {};
    const BriefRows rows = *found;
    if (act == Act::take) all.erase(found);
    return rows;
  }

  std::vector<BriefRows> rows_;
  std::optional<Recording> now_;
};

}  // namespace sigmoe::cuda
