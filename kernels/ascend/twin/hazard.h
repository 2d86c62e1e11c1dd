// One instruction as the checks see it: bounds, alignment, whether what it reads has been written, and whether every earlier
// access it depends on is known to be complete. An API function builds one when checks are on, names all it reads, then all
// it writes, and only then computes.
//
// The rule: each pipe runs its instructions in order but for data, and pipes know nothing of each other. What is complete for
// pipe p when it starts an instruction is a clock, known[p], that PipeBarrier, flags, queues and waits for other cores advance.
// Two accesses to the same bytes, one of them a write, need the later one to know the earlier, on one pipe too.
#pragma once

#include "ascend/twin/launch.h"

namespace twin {

// What LocalTensor<T> is without its type.
struct Local {
  std::byte* at = nullptr;
  std::uint32_t bytes = 0;
  AscendC::TPosition position = AscendC::TPosition::MAX;
  Buffer* buffer = nullptr;
  std::uint32_t use = 0;
};

class Instruction {
 public:
  Instruction(const char* name, pipe_t pipe, Where where)
      : core_(*checked_self(name, where)), launch_(*core_.launch), name_(name), pipe_(pipe), where_(where) {
    launch_.log.push_back({where, name, ++core_.issued[pipe], static_cast<std::uint16_t>(core_.index), pipe,
                           core_.atomic_type != 0 && (pipe == PIPE_MTE3 || pipe == PIPE_FIX)});
    id_ = static_cast<std::uint32_t>(launch_.log.size() - 1);
  }

  [[noreturn]] void fail(const std::string& what) const { twin::fail(where_, std::string(name_) + ": " + what); }
  void require(bool condition, const char* what) const {
    if (!condition) fail(what);
  }

  // `local` may serve as an operand of this instruction here: alive, in the right memory, aligned.
  void operand(const Local& local, Arena arena, std::uint32_t align = kBlock) const {
    if (!local.buffer || !local.at) fail("a local tensor that no buffer stands behind");
    const Buffer& buffer = *local.buffer;
    if (buffer.use != local.use || buffer.state == Buffer::free) fail("a local tensor used after FreeTensor");
    if (buffer.state == Buffer::queued) fail("a local tensor used while it is in its queue, between EnQue and DeQue");
    if (buffer.arena != arena)
      fail(std::string("an operand in ") + name_of(buffer.arena) + " where one in " + name_of(arena) + " is needed");
    if (offset_of(local) % align != 0)
      fail(std::string("an operand at byte ") + std::to_string(offset_of(local)) + " of " + name_of(arena) +
           ", which is not a multiple of " + std::to_string(align));
  }

  // Bytes [offset, offset + bytes) of a local tensor.
  void read(const Local& local, std::int64_t offset, std::size_t bytes) {
    if (bytes == 0) return;
    Region& region = bounded(local, offset, bytes);
    const std::size_t begin = offset_of(local) + offset;
    if (const void* hole = std::memchr(region.valid.data() + begin, 0, bytes)) {
      const auto at = static_cast<std::size_t>(static_cast<const std::uint8_t*>(hole) - region.valid.data());
      fail("reads byte " + std::to_string(at - offset_of(local)) + " of a local tensor, which nothing has written");
    }
    for (std::size_t b = begin / kBlock; b <= (begin + bytes - 1) / kBlock; ++b) {
      BlockState& block = region.blocks[b];
      ordered_after(block.writer, "reads local memory that", "writes");
      if (pipe_ != PIPE_S) block.readers[pipe_] = id_;  // the scalar unit has the value before it goes on
    }
  }

  void write(const Local& local, std::int64_t offset, std::size_t bytes) {
    if (bytes == 0) return;
    Region& region = bounded(local, offset, bytes);
    const std::size_t begin = offset_of(local) + offset;
    for (std::size_t b = begin / kBlock; b <= (begin + bytes - 1) / kBlock; ++b) {
      BlockState& block = region.blocks[b];
      ordered_after(block.writer, "writes local memory that", "writes");
      for (std::uint32_t& reader : block.readers) {
        if (reader) ordered_after(reader, "writes local memory that", "reads");
        reader = 0;
      }
      block.writer = id_;
    }
    std::memset(region.valid.data() + begin, 1, bytes);
  }

  // Two operands of one instruction: the same place, or no place in common.
  void no_partial_overlap(const Local& a, std::size_t a_bytes, const Local& b, std::size_t b_bytes) const {
    if (a.at != b.at && a.at < b.at + b_bytes && b.at < a.at + a_bytes) fail("source and destination overlap in part");
  }

  void read_gm(const void* data, std::size_t bytes) {
    each_gm_run(data, bytes, [this](std::uint32_t* writer, std::uint32_t* reader, std::size_t n) {
      if (*writer) ordered_after(*writer, "reads global memory that", "writes");
      std::fill(reader, reader + n, with_me(*reader));
    });
  }

  void write_gm(const void* data, std::size_t bytes) {
    const bool atomic = launch_.log[id_].atomic;
    each_gm_run(data, bytes, [this, atomic](std::uint32_t* writer, std::uint32_t* reader, std::size_t n) {
      if (*writer && !(atomic && launch_.log[*writer].atomic)) ordered_after(*writer, "writes global memory that", "writes");
      if (*reader & GmShadow::kSet) {
        for (const std::uint32_t id : launch_.shadow.sets[*reader & ~GmShadow::kSet])
          ordered_after(id, "writes global memory that", "reads");
      } else {
        ordered_after(*reader, "writes global memory that", "reads");
      }
      std::fill(writer, writer + n, id_);
      std::fill(reader, reader + n, 0);
    });
    if (pipe_ != PIPE_S && !launch_.shadow.dirty.empty())
      each_line(data, bytes, [this](std::uintptr_t line) {
        if (launch_.shadow.dirty.count(line)) fail("writes a 64-byte line of which a scalar write is still in a core's cache");
      });
  }

  // A scalar read of GM goes through the cache: a line read before and written since is stale.
  void read_gm_scalar(const void* data, std::size_t bytes) {
    read_gm(data, bytes);
    each_line(data, bytes, [&](std::uintptr_t line) {
      const auto [held, fresh] = core_.lines.try_emplace(line, id_);
      if (fresh) return;
      const auto begin = std::max(address(data), line * 64), end = std::min(address(data) + bytes, line * 64 + 64);
      for (std::uintptr_t at = begin; at < end; ++at) {
        const std::uint32_t writer = launch_.shadow.page(at).writer[at % GmShadow::kPage];
        const Access& access = launch_.log[writer];
        if (writer > held->second && !(access.core == core_.index && access.pipe == PIPE_S))
          fail("reads a stale cache line: what " + text(access) +
               " wrote came after the line was read; "
               "DataCacheCleanAndInvalid is missing");
      }
    });
  }

  void write_gm_scalar(const void* data, std::size_t bytes) {
    write_gm(data, bytes);
    each_line(data, bytes, [&](std::uintptr_t line) {
      const auto [dirty, fresh] = launch_.shadow.dirty.try_emplace(line, GmShadow::Dirty{core_.index, where_});
      if (!fresh && dirty->second.core != core_.index)
        fail("writes a 64-byte line that another core's scalar unit is writing too");
      core_.lines[line] = id_;
    });
  }

  static std::uintptr_t address(const void* data) { return reinterpret_cast<std::uintptr_t>(data); }

 private:
  static Core* checked_self(const char* name, Where where) {
    if (!self) twin::fail(where, std::string(name) + ": called outside a kernel");
    return self;
  }

  std::uint32_t offset_of(const Local& local) const {
    return static_cast<std::uint32_t>(local.at - core_.memory->region(local.buffer->arena).data.get());
  }

  Region& bounded(const Local& local, std::int64_t offset, std::size_t bytes) {
    if (offset < 0 || offset + static_cast<std::int64_t>(bytes) > static_cast<std::int64_t>(local.bytes))
      fail("bytes [" + std::to_string(offset) + ", " + std::to_string(offset + static_cast<std::int64_t>(bytes)) +
           ") of a local tensor that has " + std::to_string(local.bytes));
    return core_.memory->region(local.buffer->arena);
  }

  std::string text(const Access& access) const {
    std::string out = std::string(access.name) + " at " + access.where.text() + " (pipe " + name_of(access.pipe);
    if (access.core != core_.index) out += " of " + launch_.cores[access.core].label();
    return out + ")";
  }

  void ordered_after(std::uint32_t id, const char* does, const char* did) const {
    if (id == 0 || id == id_) return;
    const Access& access = launch_.log[id];
    if (core_.knows(access, pipe_)) return;
    fail(std::string(does) + " " + text(access) + " " + did + ", with nothing between them that makes pipe " + name_of(pipe_) +
         " wait");
  }

  // Calls visit(writers, readers, n) for runs of bytes that have one history.
  template <typename Visit>
  void each_gm_run(const void* data, std::size_t bytes, Visit visit) {
    if (bytes == 0) return;
    std::uintptr_t at = address(data);
    const std::uintptr_t end = at + bytes;
    const auto range = launch_.gm.upper_bound(at);
    if (range == launch_.gm.begin() || std::prev(range)->second < end)
      fail("global memory [" +
           (range == launch_.gm.begin() || std::prev(range)->second <= at
                ? std::string("outside every allocation")
                : std::to_string(end - std::prev(range)->second) + " bytes past the end of an allocation of " +
                      std::to_string(std::prev(range)->second - std::prev(range)->first)) +
           "]");
    while (at < end) {
      GmShadow::Page& page = launch_.shadow.page(at);
      const std::size_t begin = at % GmShadow::kPage, stop = std::min(GmShadow::kPage, begin + (end - at));
      for (std::size_t i = begin; i < stop;) {
        std::size_t j = i + 1;
        while (j < stop && page.writer[j] == page.writer[i] && page.reader[j] == page.reader[i]) ++j;
        visit(page.writer.data() + i, page.reader.data() + i, j - i);
        i = j;
      }
      at += stop - begin;
    }
  }

  template <typename Visit>
  static void each_line(const void* data, std::size_t bytes, Visit visit) {
    for (std::uintptr_t line = address(data) / 64; line <= (address(data) + bytes - 1) / 64; ++line) visit(line);
  }

  // `reader`, the readers of some bytes, with this instruction added and those left out that it makes superfluous.
  std::uint32_t with_me(std::uint32_t reader) {
    if (reader == 0 || reader == id_) return id_;
    if (reader == memo_before_) return memo_after_;
    std::vector<std::uint32_t> set;
    const auto keep = [&](std::uint32_t id) {
      const Access& access = launch_.log[id];
      if (id != id_ && !(access.core == core_.index && access.pipe == pipe_) && !core_.knows(access, pipe_)) set.push_back(id);
    };
    if (reader & GmShadow::kSet)
      for (const std::uint32_t id : launch_.shadow.sets[reader & ~GmShadow::kSet]) keep(id);
    else
      keep(reader);
    memo_before_ = reader;
    if (set.empty()) return memo_after_ = id_;
    set.push_back(id_);
    launch_.shadow.sets.push_back(std::move(set));
    return memo_after_ = GmShadow::kSet | static_cast<std::uint32_t>(launch_.shadow.sets.size() - 1);
  }

  Core& core_;
  Launch& launch_;
  const char* name_;
  pipe_t pipe_;
  Where where_;
  std::uint32_t id_ = 0, memo_before_ = 0, memo_after_ = 0;
};

// What an instruction of pipe `pipe` that waits for all before it would know: what a flag set by it carries.
inline Clock clock_after(const Core& core, pipe_t pipe) {
  Clock clock = core.known[pipe];
  clock[pipe] = core.issued[pipe];
  return clock;
}

// Later instructions of `pipe` start after `clock`; if that is the scalar unit, those of all pipes do.
inline void learn(Core& core, pipe_t pipe, const Clock& clock) {
  if (pipe == PIPE_S)
    for (Clock& known : core.known) join(known, clock);
  else
    join(core.known[pipe], clock);
}

}  // namespace twin
