#include "engine/weights/weight_stream.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

namespace sigmoe {
namespace {

// Large enough that system calls cost nothing, small enough that what was read is still in the cache when it is packed.
constexpr size_t kChunkBytes = 1u << 20;

}  // namespace

void WeightStream::add(Piece piece) {
  if (piece.n_rows > 0 && piece.row_bytes > 0) pieces_.push_back(std::move(piece));
}

// Pieces are cut by rows. Those that overlap are read together, and so are small ones that lie side by side.
void WeightStream::plan() {
  for (const Piece& piece : pieces_) {
    const int64_t most_rows = std::max<int64_t>(1, static_cast<int64_t>(kChunkBytes / piece.row_stride));
    for (int64_t row = 0; row < piece.n_rows; row += most_rows) {
      const int64_t n = std::min(most_rows, piece.n_rows - row);
      const uint64_t begin = piece.offset - piece.row_begin + static_cast<uint64_t>(row) * piece.row_stride;
      chunks_.push_back({&piece, row, n, begin, begin + static_cast<uint64_t>(n) * piece.row_stride});
    }
  }
  std::stable_sort(chunks_.begin(), chunks_.end(), [](const Chunk& a, const Chunk& b) {
    if (a.piece->file != b.piece->file) return std::less<>()(a.piece->file, b.piece->file);
    return a.begin < b.begin;
  });
  for (size_t i = 0; i < chunks_.size(); ++i) {
    const Chunk& chunk = chunks_[i];
    if (!spans_.empty() && chunks_[i - 1].piece->file == chunk.piece->file) {
      Span& last = spans_.back();
      const bool beside = chunk.begin == last.end && chunk.end - last.begin <= kChunkBytes && chunk.dense() && last.whole;
      if (chunk.begin < last.end || beside) {
        last.last = i + 1;
        last.end = std::max(last.end, chunk.end);
        last.whole = true;
        continue;
      }
    }
    spans_.push_back({i, i + 1, chunk.begin, chunk.end, chunk.dense()});
  }
  for (const Span& span : spans_) {
    const size_t bytes = span.whole ? static_cast<size_t>(span.end - span.begin) : chunks_[span.first].bytes();
    total_bytes_ += bytes;
    largest_span_ = std::max(largest_span_, bytes);
  }
  for (const Chunk& chunk : chunks_)
    if (!chunk.dense()) largest_cut_ = std::max(largest_cut_, chunk.bytes());
}

// What the reading threads share.
class WeightStream::Reader {
 public:
  Reader(const WeightStream& stream, const std::function<void(const LoadProgress&)>& on_progress,
         const std::atomic<bool>* cancelled)
      : stream_(stream), on_progress_(on_progress), cancelled_(cancelled) {}

  // One thread's work. Never throws.
  void work() noexcept {
    try {
      std::vector<std::byte> buffer(stream_.largest_span_), cut(stream_.largest_cut_);
      Scratch scratch;
      for (size_t i; !stop_ && (i = next_++) < stream_.spans_.size();) {
        if (cancelled_ && cancelled_->load(std::memory_order_relaxed))
          throw EngineError(ErrorCode::aborted, "loading was aborted");
        const Span& span = stream_.spans_[i];
        report(bytes_done_ += read(span, buffer.data()));
        for (size_t c = span.first; c < span.last; ++c) {
          const Chunk& chunk = stream_.chunks_[c];
          const std::byte* rows = buffer.data() + (span.whole ? chunk.begin - span.begin : 0);
          if (span.whole && !chunk.dense()) rows = cut_columns(chunk, rows, cut.data());
          chunk.piece->put(chunk.row, chunk.n_rows, rows, scratch);
        }
      }
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
      stop_ = true;
    }
  }

  void finish() {
    if (error_) {
      try {
        std::rethrow_exception(error_);
      } catch (const std::bad_alloc&) {
        throw EngineError(ErrorCode::out_of_memory, "loading: no memory for the read buffers",
                          "close other programs or lower kvCacheTokens");
      }
    }
    if (on_progress_) on_progress_({stream_.total_bytes_, stream_.total_bytes_});
  }

 private:
  size_t read(const Span& span, std::byte* out) const {
    const Chunk& first = stream_.chunks_[span.first];
    const Piece& piece = *first.piece;
    if (span.whole) {
      const auto bytes = static_cast<size_t>(span.end - span.begin);
      piece.file->read(span.begin, out, bytes);
      return bytes;
    }
    piece.file->read_rows(first.begin + piece.row_begin, piece.row_stride, piece.row_bytes, first.n_rows, out);
    return first.bytes();
  }

  static const std::byte* cut_columns(const Chunk& chunk, const std::byte* rows, std::byte* out) {
    const Piece& piece = *chunk.piece;
    for (int64_t i = 0; i < chunk.n_rows; ++i)
      std::memcpy(out + i * piece.row_bytes, rows + i * piece.row_stride + piece.row_begin, piece.row_bytes);
    return out;
  }

  // At most every 50 ms, by whichever thread comes first, and never backwards.
  void report(uint64_t bytes_done) {
    if (!on_progress_) return;
    const std::unique_lock lock(progress_mutex_, std::try_to_lock);
    const auto now = std::chrono::steady_clock::now();
    if (!lock || now - reported_at_ < std::chrono::milliseconds(50) || bytes_done <= reported_ ||
        bytes_done == stream_.total_bytes_)
      return;
    reported_at_ = now;
    reported_ = bytes_done;
    on_progress_({bytes_done, stream_.total_bytes_});
  }

  const WeightStream& stream_;
  const std::function<void(const LoadProgress&)>& on_progress_;
  const std::atomic<bool>* cancelled_;
  std::atomic<size_t> next_ = 0;
  std::atomic<uint64_t> bytes_done_ = 0;
  std::atomic<bool> stop_ = false;
  std::mutex mutex_, progress_mutex_;
  std::exception_ptr error_;
  std::chrono::steady_clock::time_point reported_at_ = std::chrono::steady_clock::now();
  uint64_t reported_ = 0;
};

void WeightStream::run(int n_threads, const std::function<void(const LoadProgress&)>& on_progress,
                       const std::atomic<bool>* cancelled) {
  plan();
  Reader reader(*this, on_progress, cancelled);
  std::vector<std::thread> threads;
  const int wanted = std::min<int>(n_threads, static_cast<int>(spans_.size()));
  try {
    threads.reserve(wanted);
    while (static_cast<int>(threads.size()) < wanted - 1) threads.emplace_back([&reader] { reader.work(); });
  } catch (const std::exception&) {
    // Fewer readers than asked for are slower, not wrong; this thread is one.
  }
  reader.work();
  for (std::thread& thread : threads) thread.join();
  reader.finish();
}

}  // namespace sigmoe
