// Makes quantised shards: several threads read rows of the source, quantise them and write codes and scales to their places.
// Memory is that of one piece per thread, whatever the size of a tensor: at most 128 rows (FP8) or about a megabyte.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <exception>
#include <map>
#include <mutex>
#include <new>
#include <thread>

#include "engine/engine.h"
#include "engine/json_text.h"
#include "engine/quantize_plan.h"
#include "engine/tensor_values.h"

namespace sigmoe {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kPieceBytes = 1u << 20;

// A file that did not exist before; removed again unless keep() was reached.
class NewFile {
 public:
  NewFile(std::string path, uint64_t bytes) : path_(std::move(path)) {
    do fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    while (fd_ < 0 && errno == EINTR);
    if (fd_ < 0) fail("creating", errno);
    // Room for the whole file, where the file system can promise it: better full now than in an hour.
    if (::fallocate(fd_, 0, 0, static_cast<off_t>(bytes)) != 0 && errno == ENOSPC) {
      ::close(fd_);
      ::unlink(path_.c_str());
      fail("making room for " + std::to_string(bytes) + " bytes in", ENOSPC);
    }
  }
  ~NewFile() {
    if (fd_ < 0) return;
    ::close(fd_);
    ::unlink(path_.c_str());
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  void write(uint64_t offset, const void* data, size_t bytes) const {
    const auto* from = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t done = ::pwrite(fd_, from, bytes, static_cast<off_t>(offset));
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) fail("writing", errno);
      from += done;
      offset += static_cast<uint64_t>(done);
      bytes -= static_cast<size_t>(done);
    }
  }

  void keep() {
    if (::fsync(fd_) != 0) fail("writing", errno);
    const int closed = ::close(fd_);
    fd_ = -1;
    if (closed == 0) return;
    const int error = errno;
    ::unlink(path_.c_str());
    fail("closing", error);
  }

 private:
  [[noreturn]] void fail(const std::string& what, int error) const {
    throw EngineError(error == ENOENT || error == ENOTDIR ? ErrorCode::not_found : ErrorCode::io,
                      what + " " + path_ + ": " + std::strerror(error),
                      error == ENOSPC ? "free some space, or write to another disk" : "check the permissions and the disk");
  }
  std::string path_;
  int fd_ = -1;
};

// A stretch of one tensor: rows to quantise, or bytes to copy.
struct Piece {
  const ShardTensor* tensor = nullptr;  // null: bytes of the file itself
  uint64_t source_offset = 0, bytes = 0;
  uint64_t offset = 0;  // in the output
  int64_t row = 0, n_rows = 0;
};

std::vector<Piece> pieces_of(const ShardPlan& shard, QuantTarget target) {
  std::vector<Piece> pieces;
  const auto copy = [&](const ShardTensor* tensor, uint64_t from, uint64_t bytes, uint64_t to) {
    for (uint64_t at = 0; at < bytes; at += kPieceBytes)
      pieces.push_back({tensor, from + at, std::min(kPieceBytes, bytes - at), to + at, 0, 0});
  };
  if (shard.unchanged) {
    copy(nullptr, 0, shard.bytes, 0);
    return pieces;
  }
  for (const ShardTensor& tensor : shard.tensors) {
    const TensorEntry& source = *tensor.source;
    if (!tensor.quantized) {
      copy(&tensor, source.offset, source.bytes, tensor.offset);
      continue;
    }
    const int64_t n = source.shape[0];
    const uint64_t row_bytes = source.bytes / static_cast<uint64_t>(n);
    const int64_t at_once = target == QuantTarget::fp8_block
                                ? kQuantBlock
                                : static_cast<int64_t>(std::clamp<uint64_t>(kPieceBytes / row_bytes, 1, 1024));
    for (int64_t row = 0; row < n; row += at_once) {
      const int64_t rows = std::min(at_once, n - row);
      pieces.push_back({&tensor, source.offset + static_cast<uint64_t>(row) * row_bytes,
                        static_cast<uint64_t>(rows) * row_bytes, tensor.offset + static_cast<uint64_t>(row * source.shape[1]),
                        row, rows});
    }
  }
  // In the order of the source file, which is then read once from end to end.
  std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.source_offset < b.source_offset; });
  return pieces;
}

class ShardWriter {
 public:
  ShardWriter(const ShardPlan& shard, QuantTarget target, const NewFile& out, const Engine::ProgressFn& on_progress,
              const std::atomic<bool>* cancelled)
      : shard_(shard),
        target_(target),
        out_(out),
        on_progress_(on_progress),
        cancelled_(cancelled),
        pieces_(pieces_of(shard, target)),
        errors_(pieces_.size()) {
    for (const Piece& piece : pieces_) {
      largest_ = std::max(largest_, piece.bytes);
      total_ += piece.bytes;
    }
  }

  void run(int n_threads) {
    if (!shard_.unchanged) out_.write(0, shard_.header.data(), shard_.header.size());
    std::vector<std::thread> threads;
    try {
      while (static_cast<int>(threads.size()) < std::min<int>(n_threads, static_cast<int>(pieces_.size())) - 1)
        threads.emplace_back([this] { work(); });
    } catch (const std::exception&) {
      // Fewer threads than asked for are slower, not wrong; this one is one.
    }
    work();
    for (std::thread& thread : threads) thread.join();
    if (error_) std::rethrow_exception(error_);
    shard_.source->check_unchanged();
    if (on_progress_) on_progress_({total_, total_});
  }

  // Relative errors by tensor, in the order of their names: sums run over pieces in one order, whoever computed them.
  Json report() const {
    std::map<std::string, std::pair<const ShardTensor*, QuantError>> sums;
    for (size_t i = 0; i < pieces_.size(); ++i) {
      const ShardTensor* tensor = pieces_[i].tensor;
      if (!tensor || !tensor->quantized) continue;
      auto& sum = sums[tensor->source->name];
      sum.first = tensor;
      sum.second.add(errors_[i]);
    }
    Json out = Json::array();
    for (const auto& [name, sum] : sums) {
      const double relative = sum.second.weight > 0 ? std::sqrt(sum.second.error / sum.second.weight) : 0;
      out.push_back({{"name", name}, {"kind", sum.first->kind}, {"relativeError", relative}});
    }
    return out;
  }

 private:
  void work() noexcept {
    try {
      std::vector<std::byte> in(largest_);
      std::vector<uint8_t> codes;
      std::vector<float> scales;
      for (size_t i; !stop_ && (i = next_++) < pieces_.size();) {
        if (cancelled_ && cancelled_->load(std::memory_order_relaxed))
          throw EngineError(ErrorCode::aborted, "quantising was aborted");
        const Piece& piece = pieces_[i];
        shard_.source->read(piece.source_offset, in.data(), piece.bytes);
        if (piece.tensor && piece.tensor->quantized)
          quantize(piece, in.data(), codes, scales, errors_[i]);
        else
          out_.write(piece.offset, in.data(), piece.bytes);
        report(done_ += piece.bytes);
      }
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
      stop_ = true;
    }
  }

  void quantize(const Piece& piece, const std::byte* rows, std::vector<uint8_t>& codes, std::vector<float>& scales,
                QuantError& error) const {
    const TensorEntry& source = *piece.tensor->source;
    const int64_t k = source.shape[1], blocks = (k + kQuantBlock - 1) / kQuantBlock;
    const bool fp8 = target_ == QuantTarget::fp8_block;
    codes.resize(static_cast<size_t>(piece.n_rows * k));
    scales.resize(static_cast<size_t>(fp8 ? blocks : piece.n_rows));
    if (!quantize_rows(target_, piece.tensor->power_of_two, source.dtype, rows, piece.n_rows, k, codes.data(), scales.data(),
                       error))
      bad_value(source.name);
    out_.write(piece.offset, codes.data(), codes.size());
    const int64_t first_scale = fp8 ? piece.row / kQuantBlock * blocks : piece.row;
    out_.write(piece.tensor->scales_offset + static_cast<uint64_t>(first_scale) * 4, scales.data(), scales.size() * 4);
  }

  void report(uint64_t done) {
    if (!on_progress_) return;
    const std::unique_lock lock(progress_mutex_, std::try_to_lock);
    const auto now = std::chrono::steady_clock::now();
    if (!lock || now - reported_at_ < std::chrono::milliseconds(50)) return;
    reported_at_ = now;
    on_progress_({std::max(done, reported_), total_});
    reported_ = std::max(done, reported_);
  }

  const ShardPlan& shard_;
  QuantTarget target_;
  const NewFile& out_;
  const Engine::ProgressFn& on_progress_;
  const std::atomic<bool>* cancelled_;
  std::vector<Piece> pieces_;
  std::vector<QuantError> errors_;  // by piece
  uint64_t largest_ = 0, total_ = 0;
  std::atomic<size_t> next_ = 0;
  std::atomic<uint64_t> done_ = 0;
  std::atomic<bool> stop_ = false;
  std::mutex mutex_, progress_mutex_;
  std::exception_ptr error_;
  std::chrono::steady_clock::time_point reported_at_ = std::chrono::steady_clock::now();
  uint64_t reported_ = 0;
};

}  // namespace

std::string plan_quantization(const std::string& folder, const std::string& format) {
  const ModelFolder model = open_model_folder(folder);
  const QuantizePlan plan = plan_shards(model, folder, parse_quant_target(format));
  Json shards = Json::array();
  for (const ShardPlan& shard : plan.shards)
    shards.push_back({{"file", shard.file}, {"bytes", shard.bytes}, {"sourceBytes", shard.source->size()}});
  return Json{{"unchanged", plan.unchanged}, {"shards", shards}, {"config", plan.config}, {"index", plan.index}}.dump();
}

std::string quantize_shard(const std::string& folder, const std::string& format, const std::string& file,
                           const std::string& out, int n_threads, const Engine::ProgressFn& on_progress,
                           const std::atomic<bool>* cancelled) {
  const ModelFolder model = open_model_folder(folder);
  const QuantTarget target = parse_quant_target(format);
  const QuantizePlan plan = plan_shards(model, folder, target);
  const auto shard = std::find_if(plan.shards.begin(), plan.shards.end(), [&](const ShardPlan& s) { return s.file == file; });
  if (shard == plan.shards.end())
    throw EngineError(ErrorCode::not_found, "'" + folder + "' has no shard '" + shortened(file) + "'", "plan again");
  NewFile written(out, shard->bytes);
  ShardWriter writer(*shard, target, written, on_progress, cancelled);
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  writer.run(n_threads > 0 ? n_threads : cores);
  written.keep();
  return writer.report().dump();
}

}  // namespace sigmoe
