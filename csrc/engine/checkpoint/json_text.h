// JSON from untrusted files: bounded depth, no duplicate keys, and typed reads that collect every complaint, so that
// one error names them all.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backend/error.h"
#include "nlohmann/json.hpp"

namespace sigmoe {

constexpr size_t kMaxConfigBytes = 4u << 20;
constexpr int kMaxJsonDepth = 32;

// `what` names the text in messages ("config.json"). Throws bad_checkpoint.
nlohmann::json parse_json(std::string_view text, const std::string& what);

// Untrusted text for a message: at most `limit` bytes, cut at a character, control characters replaced.
std::string shortened(std::string_view text, size_t limit = 120);

// What is wrong with a file, gathered. Something malformed outranks something merely unsupported.
class Problems {
 public:
  void wrong(std::string problem) { add(std::move(problem), ErrorCode::bad_checkpoint); }
  void unsupported(std::string problem) { add(std::move(problem), ErrorCode::unsupported); }
  void throw_if_any(const std::string& what) const;

 private:
  void add(std::string problem, ErrorCode code);
  std::vector<std::string> problems_;
  ErrorCode code_ = ErrorCode::unsupported;
};

// Reads the fields of one JSON object. A field that is null counts as absent. A bad field is reported to Problems and
// read as the type's zero; `fallback` makes a field optional.
class Fields {
 public:
  // `object` may be null (every field absent); `path` is the prefix in messages ("rope_scaling.").
  Fields(const nlohmann::json* object, std::string path, Problems& problems)
      : object_(object), path_(std::move(path)), problems_(problems) {}

  const nlohmann::json* find(const char* name) const;  // null when absent
  bool has(const char* name) const { return find(name) != nullptr; }
  int64_t integer(const char* name, int64_t lowest, int64_t highest, std::optional<int64_t> fallback = {}) const;
  double number(const char* name, double lowest, double highest, std::optional<double> fallback = {}) const;
  bool boolean(const char* name, bool fallback) const;
  std::string string(const char* name, const std::string& fallback) const;
  std::vector<std::string> strings(const char* name) const;                                // absent: empty
  std::vector<int64_t> integers(const char* name, int64_t lowest, int64_t highest) const;  // one integer or a list of them
  Fields object(const char* name) const;                                                   // absent: all fields absent
  // Reports the field unless it is absent or has this value.
  void must_be(const char* name, const nlohmann::json& value) const;

  std::string path(const char* name) const { return path_ + name; }
  Problems& problems() const { return problems_; }

 private:
  void wrong_type(const char* name, const nlohmann::json& value, const std::string& wanted) const;
  const nlohmann::json* object_;
  std::string path_;
  Problems& problems_;
};

}  // namespace sigmoe
