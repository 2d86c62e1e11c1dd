#include "engine/checkpoint/json_text.h"

#include <cmath>
#include <unordered_set>

namespace sigmoe {

using nlohmann::json;

std::string shortened(std::string_view text, size_t limit) {
  std::string out(text.substr(0, limit));
  if (text.size() > limit) {
    // Not into the middle of a UTF-8 sequence: drop continuation bytes, then the byte that led them.
    while (!out.empty() && (static_cast<unsigned char>(out.back()) & 0xc0u) == 0x80u) out.pop_back();
    if (!out.empty() && static_cast<unsigned char>(out.back()) >= 0xc0u) out.pop_back();
    out += "...";
  }
  for (char& c : out)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  return out;
}

json parse_json(std::string_view text, const std::string& what) {
  const auto fail = [&](const std::string& why) {
    throw EngineError(ErrorCode::bad_checkpoint, what + ": " + why, "the file is damaged or not " + what + "; fetch it again");
  };
  if (text.size() > kMaxConfigBytes)
    fail("has " + std::to_string(text.size()) + " bytes, at most " + std::to_string(kMaxConfigBytes) + " are read");
  std::vector<std::unordered_set<std::string>> keys;  // of every object that is open
  const json::parser_callback_t check = [&](int depth, json::parse_event_t event, json& parsed) {
    if (depth >= kMaxJsonDepth) fail("is nested deeper than " + std::to_string(kMaxJsonDepth));
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(parsed.get_ref<const std::string&>()).second)
      fail("has the key '" + shortened(parsed.get_ref<const std::string&>()) + "' twice in one object");
    return true;
  };
  try {
    return json::parse(text, check);
  } catch (const json::parse_error& error) {
    fail("is not JSON (byte " + std::to_string(error.byte) + ")");
  } catch (const json::out_of_range&) {
    fail("holds a number that no type can hold");
  }
  return {};
}

void Problems::add(std::string problem, ErrorCode code) {
  problems_.push_back(std::move(problem));
  if (code == ErrorCode::bad_checkpoint) code_ = code;
}

void Problems::throw_if_any(const std::string& what) const {
  if (problems_.empty()) return;
  std::string message = what + ": ";
  constexpr size_t kMost = 40;
  for (size_t i = 0; i < problems_.size() && i < kMost; ++i) message += (i ? "; " : "") + problems_[i];
  if (problems_.size() > kMost) message += "; and " + std::to_string(problems_.size() - kMost) + " more";
  throw EngineError(code_, message,
                    code_ == ErrorCode::unsupported
                        ? "this version runs BailingMoeV2 checkpoints in BF16, FP8 or INT4; see the README"
                        : "compare the file with the one the model was published with");
}

const json* Fields::find(const char* name) const {
  if (!object_) return nullptr;
  const auto it = object_->find(name);
  return it == object_->end() || it->is_null() ? nullptr : &*it;
}

void Fields::wrong_type(const char* name, const json& value, const std::string& wanted) const {
  problems_.wrong(path(name) + " is " + shortened(value.dump(), 60) + ", must be " + wanted);
}

int64_t Fields::integer(const char* name, int64_t lowest, int64_t highest, std::optional<int64_t> fallback) const {
  const json* value = find(name);
  if (!value) {
    if (!fallback) problems_.wrong(path(name) + " is missing");
    return fallback.value_or(0);
  }
  // An unsigned value above the signed range would wrap; the highest bound of any field is far below it.
  const bool fits = value->is_number_integer() && !(value->is_number_unsigned() && value->get<uint64_t>() > INT64_MAX);
  if (fits && value->get<int64_t>() >= lowest && value->get<int64_t>() <= highest) return value->get<int64_t>();
  wrong_type(name, *value, "an integer in [" + std::to_string(lowest) + ", " + std::to_string(highest) + "]");
  return 0;
}

double Fields::number(const char* name, double lowest, double highest, std::optional<double> fallback) const {
  const json* value = find(name);
  if (!value) {
    if (!fallback) problems_.wrong(path(name) + " is missing");
    return fallback.value_or(0.0);
  }
  if (value->is_number() && value->get<double>() >= lowest && value->get<double>() <= highest) return value->get<double>();
  wrong_type(name, *value, "a number in [" + json(lowest).dump() + ", " + json(highest).dump() + "]");
  return 0.0;
}

bool Fields::boolean(const char* name, bool fallback) const {
  const json* value = find(name);
  if (!value) return fallback;
  if (value->is_boolean()) return value->get<bool>();
  wrong_type(name, *value, "true or false");
  return false;
}

std::string Fields::string(const char* name, const std::string& fallback) const {
  const json* value = find(name);
  if (!value) return fallback;
  if (value->is_string()) return value->get<std::string>();
  wrong_type(name, *value, "a string");
  return {};
}

std::vector<std::string> Fields::strings(const char* name) const {
  std::vector<std::string> out;
  const json* value = find(name);
  if (!value) return out;
  bool good = value->is_array();
  if (good)
    for (const json& item : *value)
      if ((good = good && item.is_string())) out.push_back(item.get<std::string>());
  if (good) return out;
  wrong_type(name, *value, "a list of strings");
  return {};
}

std::vector<int64_t> Fields::integers(const char* name, int64_t lowest, int64_t highest) const {
  std::vector<int64_t> out;
  const json* value = find(name);
  if (!value) return out;
  const json list = value->is_array() ? *value : json::array({*value});
  for (const json& item : list) {
    const bool fits = item.is_number_integer() && !(item.is_number_unsigned() && item.get<uint64_t>() > INT64_MAX);
    if (!fits || item.get<int64_t>() < lowest || item.get<int64_t>() > highest) {
      wrong_type(name, *value,
                 "an integer in [" + std::to_string(lowest) + ", " + std::to_string(highest) + "] or a list of them");
      return {};
    }
    out.push_back(item.get<int64_t>());
  }
  return out;
}

Fields Fields::object(const char* name) const {
  const json* value = find(name);
  if (value && !value->is_object()) {
    wrong_type(name, *value, "an object");
    value = nullptr;
  }
  return Fields(value, path(name) + ".", problems_);
}

void Fields::must_be(const char* name, const json& wanted) const {
  const json* value = find(name);
  if (value && *value != wanted)
    problems_.unsupported(path(name) + " is " + shortened(value->dump(), 60) + ", only " + wanted.dump() + " is supported");
}

}  // namespace sigmoe
