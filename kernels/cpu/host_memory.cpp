#include "cpu/host_memory.h"

#include <algorithm>
#include <atomic>
#include <fstream>
#include <limits>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace sigmoe {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kSlabBytes = size_t{64} << 20;
constexpr uint64_t kCheckEvery = uint64_t{64} << 20;  // looking at /proc costs some 50 us: once per so many bytes

std::atomic<uint64_t> g_handed_out{0};   // alive now
std::atomic<uint64_t> g_since_check{0};  // handed out since available memory was last compared

constexpr size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// The number after `key` in a file of "key value" lines, or `absent`. An empty key reads the file's first word.
uint64_t read_number(const char* path, const std::string& key, uint64_t absent) {
  std::ifstream file(path);
  std::string word;
  while (key.empty() || file >> word)
    if (key.empty() || word == key) {
      uint64_t value = 0;
      return file >> value ? value : absent;
    }
  return absent;
}

uint64_t resident_bytes() {
#if defined(__linux__)
  std::ifstream file("/proc/self/statm");
  uint64_t total = 0, resident = 0;
  if (file >> total >> resident) return resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
#endif
  return 0;
}

// Pages of mapped memory arrive when they are first touched, so the machine still counts them as free.
uint64_t untouched_bytes() {
  const uint64_t handed_out = g_handed_out, resident = resident_bytes();
  return handed_out > resident ? handed_out - resident : 0;
}

void* map_zeroed(size_t bytes) {
#if defined(__linux__)
  // One huge page more than needed, so that the start can be moved to a huge page boundary and the rest given back.
  const size_t slack = bytes >= kHugePage ? kHugePage : 0;
  void* raw = mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  if (!slack) return raw;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(raw), aligned = round_up(begin, kHugePage);
  if (aligned > begin) munmap(raw, aligned - begin);
  if (begin + slack > aligned) munmap(reinterpret_cast<void*>(aligned + bytes), begin + slack - aligned);
  madvise(reinterpret_cast<void*>(aligned), bytes, MADV_HUGEPAGE);
  return reinterpret_cast<void*>(aligned);
#else
  void* data = ::operator new (bytes, std::align_val_t{4096}, std::nothrow);
  if (data) std::fill_n(static_cast<std::byte*>(data), bytes, std::byte{0});
  return data;
#endif
}

void unmap(void* data, size_t bytes) {
#if defined(__linux__)
  munmap(data, bytes);
#else
  ::operator delete (data, std::align_val_t{4096});
#endif
}

[[noreturn]] void throw_out_of_memory(const char* what, size_t bytes, uint64_t available) {
  throw EngineError(
      ErrorCode::out_of_memory,
      std::string(what) + ": " + std::to_string(bytes) + " bytes asked for, " + std::to_string(available) + " available",
      "lower kvCacheTokens, maxModelLen or maxNumSeqs, or use a smaller model or weight format");
}

}  // namespace

uint64_t available_memory_bytes() {
  constexpr uint64_t kUnknown = std::numeric_limits<uint64_t>::max();
  uint64_t available = kUnknown;
  const uint64_t machine_kib = read_number("/proc/meminfo", "MemAvailable:", kUnknown);
  if (machine_kib != kUnknown) available = machine_kib * 1024;
  struct Group {
    const char *limit, *used, *stat, *cache_key;
  };
  constexpr Group kGroups[] = {
      {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat", "inactive_file"},
      {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes",
       "/sys/fs/cgroup/memory/memory.stat", "total_inactive_file"},
  };
  for (const Group& group : kGroups) {
    const uint64_t limit = read_number(group.limit, "", kUnknown);
    if (limit == kUnknown) continue;
    const uint64_t used = read_number(group.used, "", 0);
    const uint64_t cache = read_number(group.stat, group.cache_key, 0);  // given back under pressure: not counted as used
    const uint64_t held = used > cache ? used - cache : 0;
    available = std::min(available, limit > held ? limit - held : 0);
  }
  const uint64_t promised = untouched_bytes();
  return available > promised ? available - promised : 0;
}

DeviceBuffer allocate_host(size_t bytes, const char* what) {
  if (bytes > std::numeric_limits<size_t>::max() / 2) throw_out_of_memory(what, bytes, available_memory_bytes());
  const size_t mapped = round_up(std::max<size_t>(bytes, 1), bytes >= kHugePage ? kHugePage : 4096);
  if ((g_since_check += mapped) >= kCheckEvery) {
    const uint64_t available = available_memory_bytes();
    if (mapped > available) throw_out_of_memory(what, bytes, available);
    g_since_check = 0;
  }
  void* data = map_zeroed(mapped);
  if (!data) throw_out_of_memory(what, bytes, available_memory_bytes());
  g_handed_out += mapped;
  return DeviceBuffer(data, bytes, [mapped](void* memory, size_t) {
    unmap(memory, mapped);
    g_handed_out -= mapped;
  });
}

SlabArena::Piece SlabArena::allocate(size_t bytes, const std::string& what) {
  bytes = round_up(std::max<size_t>(bytes, 1), 64);
  if (bytes > kSlabBytes / 4) {
    auto own = std::make_shared<DeviceBuffer>(allocate_host(bytes, what.c_str()));
    std::byte* data = own->as<std::byte>();
    return {std::move(own), data};
  }
  const std::lock_guard guard(lock_);
  if (!slab_ || used_ + bytes > slab_->bytes()) {
    slab_ = std::make_shared<DeviceBuffer>(allocate_host(kSlabBytes, what.c_str()));
    used_ = 0;
  }
  std::byte* data = slab_->as<std::byte>() + used_;
  used_ += bytes;
  return {slab_, data};
}

}  // namespace sigmoe
