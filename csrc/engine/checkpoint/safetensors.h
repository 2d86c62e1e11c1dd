// The safetensors container: 8 bytes of header length, a JSON header, then tensor bytes. Files are untrusted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backend/dtype.h"
#include "backend/error.h"

namespace sigmoe {

// Positioned reads of one file. A file that shrinks or changes (size or modification time) while it is being read is
// ErrorCode::file_changed, never a signal: nothing is mapped.
class FileReader {
 public:
  virtual ~FileReader() = default;
  virtual const std::string& path() const = 0;
  virtual uint64_t size() const = 0;
  virtual void read(uint64_t offset, void* out, size_t bytes) const = 0;  // exactly `bytes`, or throws
  // Rows of row_bytes that lie row_stride apart in the file, packed densely into out.
  virtual void read_rows(uint64_t offset, uint64_t row_stride, size_t row_bytes, int64_t n_rows, void* out) const;
  virtual void check_unchanged() const = 0;
};

std::unique_ptr<FileReader> open_file(const std::string& path);
std::unique_ptr<FileReader> memory_file(std::string name, std::vector<std::byte> bytes);  // tests and fuzzing

struct TensorEntry {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  uint64_t offset = 0;  // absolute, in its file
  uint64_t bytes = 0;
  const FileReader* file = nullptr;
};

constexpr uint64_t kMaxHeaderBytes = 100u << 20;

// Parses and validates one file's header: sizes, dtypes, shapes, ranges inside the file, no overlaps, no gaps, no
// duplicate names. Throws bad_checkpoint naming the file and the tensor.
std::vector<TensorEntry> read_safetensors_header(const FileReader& file);

constexpr const char* kIndexName = "model.safetensors.index.json";
using ShardIndex = std::map<std::string, std::string>;  // tensor name to the plain name of its file

// The weight_map of an index file. Throws bad_checkpoint, also for names that would leave the folder.
ShardIndex parse_shard_index(const std::string& text);

// All tensors of a checkpoint folder: model.safetensors, or the shards of model.safetensors.index.json.
class Checkpoint {
 public:
  static Checkpoint open(const std::string& folder);
  // `index`, when given, must agree with where the tensors are.
  static Checkpoint from_files(std::vector<std::unique_ptr<FileReader>> files, const ShardIndex* index = nullptr);

  // Entries that need no header: each names its file and a range in it. For synthetic weights.
  static Checkpoint from_entries(std::vector<std::unique_ptr<FileReader>> files, std::vector<TensorEntry> entries);

  const TensorEntry* find(const std::string& name) const;  // null when absent
  const std::map<std::string, TensorEntry>& tensors() const { return tensors_; }
  uint64_t total_bytes() const;
  void check_unchanged() const;

 private:
  std::vector<std::unique_ptr<FileReader>> files_;
  std::map<std::string, TensorEntry> tensors_;
};

}  // namespace sigmoe
