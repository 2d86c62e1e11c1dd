// Checked readers of JavaScript arguments. lib validates first; these make a wrong call a TypeError, never a crash.
#pragma once

#include <napi.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

namespace sigmoe::binding {

[[noreturn]] inline void throw_expected(Napi::Env env, const std::string& name, const char* kind) {
  throw Napi::TypeError::New(env, "Expected " + name + " to be " + kind);
}

inline Napi::Object object_arg(const Napi::CallbackInfo& info, size_t index, const char* name) {
  if (index >= info.Length() || !info[index].IsObject() || info[index].IsFunction())
    throw_expected(info.Env(), name, "an object");
  return info[index].As<Napi::Object>();
}

inline std::string string_arg(const Napi::CallbackInfo& info, size_t index, const char* name) {
  if (index >= info.Length() || !info[index].IsString()) throw_expected(info.Env(), name, "a string");
  return info[index].As<Napi::String>().Utf8Value();
}

inline Napi::Function function_arg(const Napi::CallbackInfo& info, size_t index, const char* name) {
  if (index >= info.Length() || !info[index].IsFunction()) throw_expected(info.Env(), name, "a function");
  return info[index].As<Napi::Function>();
}

// A whole number that a double holds exactly.
inline int64_t integer(const Napi::Value& value, const std::string& name) {
  if (!value.IsNumber()) throw_expected(value.Env(), name, "a whole number");
  const double number = value.As<Napi::Number>().DoubleValue();
  if (!(std::abs(number) <= 9007199254740991.0) || number != std::floor(number))
    throw_expected(value.Env(), name, "a whole number");
  return static_cast<int64_t>(number);
}

inline int integer32(const Napi::Value& value, const std::string& name) {
  const int64_t wide = integer(value, name);
  if (wide < INT32_MIN || wide > INT32_MAX) throw_expected(value.Env(), name, "a whole number of at most 32 bits");
  return static_cast<int>(wide);
}

inline float number(const Napi::Value& value, const std::string& name) {
  if (!value.IsNumber()) throw_expected(value.Env(), name, "a number");
  return value.As<Napi::Number>().FloatValue();
}

inline std::string text(const Napi::Value& value, const std::string& name) {
  if (!value.IsString()) throw_expected(value.Env(), name, "a string");
  return value.As<Napi::String>().Utf8Value();
}

inline bool boolean(const Napi::Value& value, const std::string& name) {
  if (!value.IsBoolean()) throw_expected(value.Env(), name, "a boolean");
  return value.As<Napi::Boolean>().Value();
}

inline uint64_t unsigned_bigint(const Napi::Value& value, const std::string& name) {
  bool lossless = false;
  if (!value.IsBigInt()) throw_expected(value.Env(), name, "a bigint");
  const uint64_t bits = value.As<Napi::BigInt>().Uint64Value(&lossless);
  if (!lossless) throw_expected(value.Env(), name, "a bigint in [0, 2^64)");
  return bits;
}

inline std::vector<int32_t> int32_array(const Napi::Value& value, const std::string& name) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_int32_array)
    throw_expected(value.Env(), name, "an Int32Array");
  const auto array = value.As<Napi::Int32Array>();
  return {array.Data(), array.Data() + array.ElementLength()};
}

inline std::vector<Napi::Value> elements(const Napi::Value& value, const std::string& name) {
  if (!value.IsArray()) throw_expected(value.Env(), name, "an array");
  const auto array = value.As<Napi::Array>();
  std::vector<Napi::Value> out;
  for (uint32_t i = 0; i < array.Length(); ++i) out.push_back(array.Get(i));
  return out;
}

inline std::vector<float> float32_array(const Napi::Value& value, const std::string& name) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_float32_array)
    throw_expected(value.Env(), name, "a Float32Array");
  const auto array = value.As<Napi::Float32Array>();
  return {array.Data(), array.Data() + array.ElementLength()};
}

}  // namespace sigmoe::binding
