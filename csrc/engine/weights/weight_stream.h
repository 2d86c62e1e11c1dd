// Moves checkpoint bytes to where they belong: positioned reads of a megabyte by several threads, each read handed
// on at once, so that no tensor ever exists twice. What several pieces want of a file, as the ranks of a world do, is read
// once. Knows files and rows, no model.
#pragma once

#include <atomic>
#include <functional>
#include <vector>

#include "engine/checkpoint/safetensors.h"
#include "engine/weights/weights.h"

namespace sigmoe {

// One reading thread's reusable memory for what a sink has to compute.
using Scratch = std::vector<float>;

// Rows of one tensor, or the same columns of its rows, and their sink.
struct Piece {
  const FileReader* file = nullptr;
  uint64_t offset = 0;  // of the first wanted byte
  int64_t n_rows = 0;
  size_t row_bytes = 0;     // wanted of each row
  uint64_t row_stride = 0;  // from row to row; row_bytes when whole rows are wanted
  // data holds n rows from `row` on, row_bytes apart. Called from any thread, at once for different rows.
  std::function<void(int64_t row, int64_t n, const std::byte* data, Scratch& scratch)> put{};
  size_t row_begin = 0;  // bytes of a row before the wanted ones
};

class WeightStream {
 public:
  void add(Piece piece);
  // Reads every piece. The first error of any thread stops the others and is thrown.
  void run(int n_threads, const std::function<void(const LoadProgress&)>& on_progress, const std::atomic<bool>* cancelled);

 private:
  struct Chunk {  // rows [row, row + n_rows) of a piece
    const Piece* piece;
    int64_t row, n_rows;
    uint64_t begin, end;  // of the whole rows in the file: at most kChunkBytes unless one row is larger
    size_t bytes() const { return static_cast<size_t>(n_rows) * piece->row_bytes; }
    bool dense() const { return piece->row_bytes == piece->row_stride; }
  };
  struct Span {  // chunks [first, last): the bytes [begin, end) of a file, read with one call when there are several
    size_t first, last;
    uint64_t begin, end;
    bool whole;  // all of them, else the columns of its only chunk
  };
  void plan();
  class Reader;

  std::vector<Piece> pieces_;
  std::vector<Chunk> chunks_;
  std::vector<Span> spans_;
  size_t largest_span_ = 0, largest_cut_ = 0;  // bytes of a span, of the wanted columns of a chunk
  uint64_t total_bytes_ = 0;
};

}  // namespace sigmoe
