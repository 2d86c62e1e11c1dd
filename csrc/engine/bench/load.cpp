// Three times of one folder: reading its files and throwing the bytes away, reading them into memory new to the process (the
// least a loader can do: on a virtual machine the memory may cost more than the reading), and loading it.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <set>
#include <thread>

#include "backend/registry.h"
#include "engine/bench/modes.h"
#include "engine/model_folder.h"

namespace sigmoe::bench {
namespace {

double milliseconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

// With the loader's number of threads; into memory of `keep` when given, else over one buffer a thread.
std::vector<DeviceBuffer> read_files(const Checkpoint& checkpoint, int n_threads, Backend* keep) {
  constexpr size_t kChunk = 1u << 20;
  std::set<const FileReader*> files;
  for (const auto& [name, entry] : checkpoint.tensors()) files.insert(entry.file);
  struct Chunk {
    const FileReader* file;
    uint64_t at;
    size_t bytes;
    std::byte* to;
  };
  std::vector<DeviceBuffer> kept;
  std::vector<Chunk> chunks;
  for (const FileReader* file : files) {
    if (keep) kept.push_back(keep->alloc(file->size(), "a file"));
    for (uint64_t at = 0; at < file->size(); at += kChunk)
      chunks.push_back({file, at, static_cast<size_t>(std::min<uint64_t>(kChunk, file->size() - at)),
                        keep ? kept.back().as<std::byte>() + at : nullptr});
  }
  std::atomic<size_t> next{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < n_threads; ++i)
    threads.emplace_back([&] {
      std::vector<std::byte> buffer(kChunk);
      for (size_t c; (c = next++) < chunks.size();)
        chunks[c].file->read(chunks[c].at, chunks[c].to ? chunks[c].to : buffer.data(), chunks[c].bytes);
    });
  for (std::thread& thread : threads) thread.join();
  return kept;
}

// Asks the kernel to forget clean pages of the folder's files, so that the next read comes from the disk.
void drop_cached_files(const std::string& folder) {
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const int file = open(entry.path().c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) continue;
    posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    close(file);
  }
}

void add_row(Meter& meter, const ModelFolder& folder, const std::string& part, double ms, const std::string& bound = "",
             double bound_ms = 0) {
  const double bytes = static_cast<double>(folder.checkpoint.total_bytes());
  Json row = {{"phase", "load"}, {"part", part}, {"milliseconds", ms}, {"bytes", bytes}, {"gbps", bytes / ms / 1e6}};
  if (!bound.empty()) row.update({{"boundMilliseconds", bound_ms}, {"boundBy", bound}, {"fraction", bound_ms / ms}});
  meter.rows().push_back(std::move(row));
}

}  // namespace

void measure_load(const Options& options, Meter& meter, const std::atomic<bool>* cancelled) {
  const ModelFolder folder = open_model_folder(options.model);
  std::string reason;
  const std::string device = resolve_device(options.engine.device, reason);
  LoadOptions load;
  load.n_threads = backend_options(options.engine).n_threads;
  load.cancelled = cancelled;
  for (const bool cold : {false, true}) {
    const auto backend = create_backend(device, backend_options(options.engine));
    const auto host = create_backend("cpu", {});
    std::vector<double> reads, kept_reads, loads;
    const auto time = [&](std::vector<double>& times, const std::function<void()>& body) {
      if (cold) drop_cached_files(options.model);
      times.push_back(milliseconds(body));
    };
    for (int i = 0; i < (cold ? 3 : 5); ++i) {
      meter.check_cancelled();
      meter.say(std::string(cold ? "cold" : "warm") + " load " + std::to_string(i + 1));
      time(reads, [&] { read_files(folder.checkpoint, load.n_threads, nullptr); });
      {
        std::vector<DeviceBuffer> kept;
        time(kept_reads, [&] { kept = read_files(folder.checkpoint, load.n_threads, host.get()); });
      }
      ModelWeights weights;
      time(loads, [&] {
        const ModelFolder again = open_model_folder(options.model);
        weights = load_weights(again.config, again.checkpoint, *backend, load);
      });
    }
    const std::string kind = cold ? "cold " : "warm ";
    add_row(meter, folder, kind + "read, discarded", median(reads));
    add_row(meter, folder, kind + "read into memory", median(kept_reads));
    add_row(meter, folder, kind + "load", median(loads), kind + "read into memory", median(kept_reads));
  }
}

}  // namespace sigmoe::bench
