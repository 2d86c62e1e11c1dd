#include "engine/checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>
#include <unordered_set>

#include "engine/checkpoint/json_text.h"

namespace sigmoe {
namespace {

constexpr size_t kMaxNameBytes = 512;
constexpr size_t kMaxDimensions = 8;

using nlohmann::json;

// Events of a JSON text in which only objects, strings, unsigned numbers and arrays of them make sense. Reading by events
// keeps memory in proportion to what is accepted: a hostile header cannot grow a document tree.
class EventReader : public json::json_sax_t {
 public:
  explicit EventReader(std::string what) : what_(std::move(what)) {}
  bool null() override { refuse("null"); }
  bool boolean(bool) override { refuse("true or false"); }
  bool number_integer(number_integer_t) override { refuse("a negative number"); }
  bool number_unsigned(number_unsigned_t) override { refuse("a number"); }
  bool number_float(number_float_t, const string_t&) override { refuse("a fraction"); }
  bool string(string_t&) override { refuse("a string"); }
  bool binary(binary_t&) override { refuse("binary data"); }
  bool start_object(std::size_t) override { refuse("an object"); }
  bool end_object() override { return true; }
  bool start_array(std::size_t) override { refuse("a list"); }
  bool end_array() override { return true; }
  bool key(string_t&) override { return true; }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
    fail("is not JSON (byte " + std::to_string(position) + ")");
  }

 protected:
  [[noreturn]] void fail(const std::string& why) const {
    throw EngineError(ErrorCode::bad_checkpoint, what_ + " " + why,
                      "the file is damaged; fetch it again and compare its checksum");
  }
  [[noreturn]] void refuse(const std::string& found) const { fail("holds " + found + where() + " where none belongs"); }
  virtual std::string where() const { return {}; }
  std::string what_;
};

const std::unordered_map<std::string, DType>& dtype_names() {
  static const std::unordered_map<std::string, DType> names = {
      {"F32", DType::f32}, {"BF16", DType::bf16}, {"F16", DType::f16}, {"F8_E4M3", DType::f8_e4m3}, {"I8", DType::i8},
      {"U8", DType::u8},   {"I32", DType::i32},   {"I64", DType::i64}, {"BOOL", DType::boolean},
  };
  return names;
}

// {"__metadata__": {string: string}, name: {"dtype": string, "shape": [unsigned], "data_offsets": [begin, end]}}
class HeaderReader : public EventReader {
 public:
  HeaderReader(const std::string& path, std::vector<TensorEntry>& out) : EventReader(path + ": the header"), out_(out) {}

  bool start_object(std::size_t) override {
    if (depth_ >= 2) refuse("an object");
    if (++depth_ == 2 && name_ != "__metadata__") {
      out_.push_back({});
      out_.back().name = name_;
      has_dtype_ = has_shape_ = has_offsets_ = false;
    }
    return true;
  }

  bool end_object() override {
    if (--depth_ == 1 && name_ != "__metadata__" && !(has_dtype_ && has_shape_ && has_offsets_ && n_offsets_ == 2))
      fail("lacks dtype, shape or two data_offsets" + where());
    return true;
  }

  bool key(string_t& key) override {
    if (depth_ == 1) {
      if (key.size() > kMaxNameBytes) fail("has a tensor name of " + std::to_string(key.size()) + " bytes");
      if (!names_.insert(key).second) fail("has two entries named '" + shortened(key) + "'");
      name_ = key;
      field_.clear();
      return true;
    }
    if (name_ == "__metadata__") return true;
    field_ = key;
    bool& seen = key == "dtype" ? has_dtype_ : key == "shape" ? has_shape_ : has_offsets_;
    if (key != "dtype" && key != "shape" && key != "data_offsets")
      fail("has the unknown field '" + shortened(key) + "'" + where());
    if (seen) fail("has " + key + " twice" + where());
    seen = true;
    return true;
  }

  bool string(string_t& value) override {
    if (depth_ == 2 && name_ == "__metadata__") return true;
    if (depth_ != 2 || field_ != "dtype" || in_array_) refuse("a string");
    const auto found = dtype_names().find(value);
    if (found == dtype_names().end()) fail("has the unknown dtype '" + shortened(value, 20) + "'" + where());
    out_.back().dtype = found->second;
    return true;
  }

  bool start_array(std::size_t) override {
    if (depth_ != 2 || name_ == "__metadata__" || field_ == "dtype" || in_array_) refuse("a list");
    in_array_ = true;
    n_offsets_ = field_ == "data_offsets" ? 0 : n_offsets_;
    return true;
  }

  bool end_array() override {
    in_array_ = false;
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (!in_array_) refuse("a number");
    TensorEntry& entry = out_.back();
    if (field_ == "shape") {
      if (entry.shape.size() == kMaxDimensions || value > INT64_MAX) fail("has an unreasonable shape" + where());
      entry.shape.push_back(static_cast<int64_t>(value));
    } else {
      if (++n_offsets_ > 2) fail("has more than two data_offsets" + where());
      if (n_offsets_ == 1) entry.offset = value;
      if (n_offsets_ == 2) {
        if (value < entry.offset) fail("has data_offsets that run backwards" + where());
        entry.bytes = value - entry.offset;
      }
    }
    return true;
  }

 private:
  std::string where() const override { return name_.empty() ? "" : " at '" + shortened(name_) + "'"; }
  std::vector<TensorEntry>& out_;
  std::unordered_set<std::string> names_;
  std::string name_, field_;
  int depth_ = 0, n_offsets_ = 0;
  bool in_array_ = false, has_dtype_ = false, has_shape_ = false, has_offsets_ = false;
};

// {"metadata": anything flat, "weight_map": {tensor: file}}
class IndexReader : public EventReader {
 public:
  explicit IndexReader(ShardIndex& out) : EventReader(kIndexName), out_(out) {}

  bool start_object(std::size_t) override {
    if (depth_ == 2) refuse("an object");
    ++depth_;
    return true;
  }
  bool end_object() override {
    --depth_;
    return true;
  }
  bool key(string_t& key) override {
    if (depth_ == 1) {
      section_ = key;
      seen_map = seen_map || key == "weight_map";
    }
    name_ = key;
    return true;
  }
  bool string(string_t& file) override {
    if (section_ != "weight_map") return depth_ > 0;
    if (depth_ != 2) refuse("a string");
    if (file.empty() || file.size() > 255 || file[0] == '.' || file.find_first_of(std::string("/\\\0", 3)) != std::string::npos)
      fail("names the file '" + shortened(file) + "' for '" + shortened(name_) +
           "': only plain file names of the same folder are read");
    if (name_.size() > kMaxNameBytes) fail("has a tensor name of " + std::to_string(name_.size()) + " bytes");
    if (!out_.emplace(name_, file).second) fail("lists '" + shortened(name_) + "' twice");
    return true;
  }
  // Sizes and notes under "metadata" are not used: exporters write total_size before quantising.
  bool number_unsigned(number_unsigned_t) override { return flat("a number"); }
  bool number_float(number_float_t, const string_t&) override { return flat("a fraction"); }
  bool boolean(bool) override { return flat("true or false"); }
  bool null() override { return flat("null"); }

  bool seen_map = false;

 private:
  bool flat(const char* found) const {
    if (section_ == "weight_map" || depth_ == 0) refuse(found);
    return true;
  }
  ShardIndex& out_;
  std::string section_, name_;
  int depth_ = 0;
};

// Bytes of the shape, or nothing when the product overflows.
bool shape_bytes(const TensorEntry& entry, uint64_t& bytes) {
  bytes = dtype_bytes(entry.dtype);
  for (const int64_t dim : entry.shape)
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(dim), &bytes)) return false;
  return true;
}

std::string base_name(const std::string& path) { return path.substr(path.find_last_of('/') + 1); }

[[noreturn]] void bad_file(const FileReader& file, const std::string& why) {
  throw EngineError(ErrorCode::bad_checkpoint, file.path() + ": " + why,
                    "the file is damaged; fetch it again and compare its checksum");
}

}  // namespace

std::vector<TensorEntry> read_safetensors_header(const FileReader& file) {
  if (file.size() < 8) bad_file(file, "has " + std::to_string(file.size()) + " bytes, too few for a safetensors file");
  unsigned char length_bytes[8];
  file.read(0, length_bytes, 8);
  uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | length_bytes[i];
  if (header_bytes > kMaxHeaderBytes || header_bytes > file.size() - 8)
    bad_file(file, "claims a header of " + std::to_string(header_bytes) + " bytes in a file of " + std::to_string(file.size()));

  std::string text(header_bytes, '\0');
  file.read(8, text.data(), text.size());
  std::vector<TensorEntry> entries;
  HeaderReader reader(file.path(), entries);
  json::sax_parse(text, &reader);

  const uint64_t data_begin = 8 + header_bytes, data_bytes = file.size() - data_begin;
  std::vector<TensorEntry*> by_offset;
  for (TensorEntry& entry : entries) {
    uint64_t wanted = 0;
    if (!shape_bytes(entry, wanted) || wanted != entry.bytes)
      bad_file(file, "'" + shortened(entry.name) + "' has " + std::to_string(entry.bytes) +
                         " bytes, not what its shape and dtype " + dtype_name(entry.dtype) + " take");
    if (entry.offset > data_bytes || entry.bytes > data_bytes - entry.offset)
      bad_file(file, "'" + shortened(entry.name) + "' ends at byte " + std::to_string(entry.offset + entry.bytes) + " of " +
                         std::to_string(data_bytes) + ": the file is cut short or the header lies");
    by_offset.push_back(&entry);
  }
  std::sort(by_offset.begin(), by_offset.end(), [](const TensorEntry* a, const TensorEntry* b) {
    return a->offset != b->offset ? a->offset < b->offset : a->bytes < b->bytes;
  });
  uint64_t end = 0;
  for (const TensorEntry* entry : by_offset) {
    if (entry->offset != end)
      bad_file(file, std::string(entry->offset < end ? "tensors overlap" : "there is a gap") + " before '" +
                         shortened(entry->name) + "'");
    end = entry->offset + entry->bytes;
  }
  if (end != data_bytes) bad_file(file, std::to_string(data_bytes - end) + " bytes after the last tensor belong to none");
  for (TensorEntry& entry : entries) {
    entry.offset += data_begin;
    entry.file = &file;
  }
  return entries;
}

ShardIndex parse_shard_index(const std::string& text) {
  ShardIndex index;
  IndexReader reader(index);
  json::sax_parse(text, &reader);
  if (!reader.seen_map || index.empty())
    throw EngineError(ErrorCode::bad_checkpoint, std::string(kIndexName) + " has no weight_map", "fetch the file again");
  return index;
}

Checkpoint Checkpoint::from_files(std::vector<std::unique_ptr<FileReader>> files, const ShardIndex* index) {
  Checkpoint out;
  out.files_ = std::move(files);
  for (const auto& file : out.files_)
    for (TensorEntry& entry : read_safetensors_header(*file)) {
      const auto [it, added] = out.tensors_.try_emplace(entry.name, std::move(entry));
      if (!added) bad_file(*file, "'" + shortened(entry.name) + "' is also in " + base_name(it->second.file->path()));
    }
  if (!index) return out;
  for (const auto& [name, shard] : *index) {
    const TensorEntry* entry = out.find(name);
    if (!entry || base_name(entry->file->path()) != shard)
      throw EngineError(ErrorCode::bad_checkpoint,
                        std::string(kIndexName) + " places '" + shortened(name) + "' in " + shortened(shard) + ": it is " +
                            (entry ? "in " + base_name(entry->file->path()) : std::string("in no shard")),
                        "the shards are of different downloads; fetch the folder again");
  }
  return out;
}

Checkpoint Checkpoint::from_entries(std::vector<std::unique_ptr<FileReader>> files, std::vector<TensorEntry> entries) {
  Checkpoint out;
  out.files_ = std::move(files);
  for (TensorEntry& entry : entries) out.tensors_.emplace(entry.name, std::move(entry));
  return out;
}

Checkpoint Checkpoint::open(const std::string& folder) {
  std::vector<std::unique_ptr<FileReader>> files;
  std::unique_ptr<FileReader> index_file;
  try {
    index_file = open_file(folder + "/" + kIndexName);
  } catch (const EngineError& error) {
    if (error.code() != ErrorCode::not_found) throw;
    files.push_back(open_file(folder + "/model.safetensors"));  // not sharded
    return from_files(std::move(files));
  }
  if (index_file->size() > kMaxHeaderBytes) bad_file(*index_file, "has " + std::to_string(index_file->size()) + " bytes");
  std::string text(index_file->size(), '\0');
  index_file->read(0, text.data(), text.size());
  const ShardIndex index = parse_shard_index(text);
  std::unordered_set<std::string> opened;
  constexpr size_t kMostShards = 4096;
  for (const auto& [name, shard] : index) {
    if (!opened.insert(shard).second) continue;
    if (opened.size() > kMostShards) bad_file(*index_file, "names more than " + std::to_string(kMostShards) + " files");
    files.push_back(open_file(folder + "/" + shard));
  }
  return from_files(std::move(files), &index);
}

const TensorEntry* Checkpoint::find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

uint64_t Checkpoint::total_bytes() const {
  uint64_t bytes = 0;
  for (const auto& [name, entry] : tensors_) bytes += entry.bytes;
  return bytes;
}

void Checkpoint::check_unchanged() const {
  for (const auto& file : files_) file->check_unchanged();
}

}  // namespace sigmoe
