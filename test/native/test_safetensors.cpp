#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "doctest/doctest.h"
#include "engine/checkpoint/safetensors.h"

using namespace sigmoe;

namespace {

std::vector<std::byte> file_bytes(const std::string& header, size_t data_bytes, uint64_t claimed = UINT64_MAX) {
  const uint64_t length = claimed == UINT64_MAX ? header.size() : claimed;
  std::vector<std::byte> out(8 + header.size() + data_bytes);
  std::memcpy(out.data(), &length, 8);
  std::memcpy(out.data() + 8, header.data(), header.size());
  for (size_t i = 0; i < data_bytes; ++i) out[8 + header.size() + i] = static_cast<std::byte>(i);
  return out;
}

// The error a file must cause, or "no error".
std::string failure(const std::string& header, size_t data_bytes = 16, uint64_t claimed = UINT64_MAX) {
  const auto file = memory_file("x.safetensors", file_bytes(header, data_bytes, claimed));
  try {
    read_safetensors_header(*file);
  } catch (const EngineError& error) {
    CHECK(error.code() == ErrorCode::bad_checkpoint);
    return error.what();
  }
  return "no error";
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

const std::string kGood = R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
                          R"("b":{"dtype":"BF16","shape":[4],"data_offsets":[8,16]}})";

class Folder {
 public:
  Folder() : path(std::filesystem::temp_directory_path() / ("sigmoe-test-" + std::to_string(::getpid()))) {
    std::filesystem::create_directory(path);
  }
  ~Folder() { std::filesystem::remove_all(path); }
  std::string write(const std::string& name, const std::vector<std::byte>& bytes) const {
    std::ofstream(path / name, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<long>(bytes.size()));
    return (path / name).string();
  }
  void write(const std::string& name, const std::string& text) const { std::ofstream(path / name) << text; }
  std::filesystem::path path;
};

ErrorCode open_code(const std::filesystem::path& folder, std::string* message = nullptr) {
  try {
    Checkpoint::open(folder.string());
  } catch (const EngineError& error) {
    if (message) *message = error.what();
    return error.code();
  }
  FAIL("opened");
  return ErrorCode::internal;
}

}  // namespace

TEST_CASE("safetensors: a good header") {
  const auto file = memory_file("x", file_bytes(kGood, 16));
  const auto entries = read_safetensors_header(*file);
  REQUIRE(entries.size() == 2);
  CHECK(entries[1].name == "b");
  CHECK(entries[1].dtype == DType::bf16);
  CHECK(entries[1].shape == std::vector<int64_t>{4});
  CHECK(entries[1].offset == 8 + kGood.size() + 8);
  CHECK(entries[1].bytes == 8);
  CHECK(failure(kGood + "   ") == "no error");
  CHECK(failure("{}", 0) == "no error");
  CHECK(
      failure(R"({"s":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"e":{"dtype":"F32","shape":[0,7],"data_offsets":[4,4]}})",
              4) == "no error");
}

TEST_CASE("safetensors: headers that lie") {
  CHECK(has(failure(kGood, 15), "ends at byte 16 of 15"));
  CHECK(has(failure(kGood, 17), "1 bytes after the last tensor"));
  CHECK(has(failure(kGood, 16, UINT64_MAX - 1), "claims a header"));
  CHECK(has(failure(kGood, 16, kGood.size() + 17), "claims a header"));
  CHECK(has(failure(kGood, 16, kGood.size() - 1), "not JSON"));
  CHECK(has(failure(kGood, 16, 0), "not JSON"));
  CHECK(has(
      failure(
          R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})"),
      "overlap"));
  CHECK(has(
      failure(
          R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})"),
      "gap"));
  CHECK(has(failure(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,16]}})"), "not what its shape"));
  CHECK(has(failure(R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}})"), "backwards"));
  CHECK(has(failure(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16]}})"), "not what its shape"));
  CHECK(has(failure(R"({"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}})", 0), "not what its shape"));
  CHECK(has(failure(R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[18446744073709551600,18446744073709551615]}})"), "'a'"));
  CHECK(has(failure(R"({"a":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}})"), "negative"));
  CHECK(has(failure(R"({"a":{"dtype":"F32","shape":[4.0],"data_offsets":[0,16]}})"), "fraction"));
  CHECK(has(failure(R"({"a":{"dtype":"F33","shape":[4],"data_offsets":[0,16]}})"), "unknown dtype 'F33'"));
  CHECK(has(failure(R"({"a":{"dtype":"F32","shape":[4]}})"), "lacks"));
  CHECK(has(failure(R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0]}})"), "lacks"));
  CHECK(has(failure(R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16,16]}})"), "more than two"));
  CHECK(has(failure(R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16],"x":1}})"), "unknown field"));
  CHECK(has(failure(R"({"a":{"dtype":"F32","dtype":"F32","shape":[4],"data_offsets":[0,16]}})"), "twice"));
  CHECK(has(
      failure(
          R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})"),
      "two entries"));
  CHECK(has(failure("[1,2]"), "list"));
  CHECK(has(failure("7"), "number"));
  CHECK(has(failure(R"({"a":[]})"), "list"));
  CHECK(has(failure(R"({"a":{"dtype":{},"shape":[4],"data_offsets":[0,16]}})"), "object"));
  CHECK(has(failure(std::string(1000000, '[')), "list"));
  CHECK(has(failure(R"({"a":{"dtype":"F32","shape":)" + std::string(1000000, '[')), "list"));
  CHECK(has(failure(R"({")" + std::string(100000, 'n') + R"(":{}})"), "name of 100000 bytes"));
  CHECK(failure("", 0).find("not JSON") != std::string::npos);
  const auto tiny = memory_file("t", std::vector<std::byte>(5));
  CHECK_THROWS_AS(read_safetensors_header(*tiny), EngineError);
}

TEST_CASE("safetensors: strided rows, on disk and in memory") {
  const Folder folder;
  std::vector<std::byte> bytes(200000);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 7 + i / 256);
  const auto disk = open_file(folder.write("rows", bytes));
  const auto memory = memory_file("m", bytes);
  for (const size_t row_bytes : {1, 16, 100})
    for (const uint64_t stride : {100, 117, 1000, 12000}) {
      const int64_t rows = stride == 12000 ? 16 : stride == 1000 ? 190 : 1600;
      std::vector<std::byte> a(rows * row_bytes), b(rows * row_bytes);
      disk->read_rows(33, stride, row_bytes, rows, a.data());
      memory->read_rows(33, stride, row_bytes, rows, b.data());
      CHECK(a == b);
      CHECK(a[(rows - 1) * row_bytes] == bytes[33 + (rows - 1) * stride]);
    }
}

TEST_CASE("safetensors: a file that shrinks or changes is a typed error") {
  const Folder folder;
  const std::string path = folder.write("f", std::vector<std::byte>(100000));
  const auto file = open_file(path);
  file->check_unchanged();
  std::vector<std::byte> buffer(1000);
  const auto code = [](auto&& call) {
    try {
      call();
    } catch (const EngineError& error) {
      return error.code();
    }
    return ErrorCode::internal;
  };
  const timespec later[2] = {{2000000000, 0}, {2000000000, 5}};
  REQUIRE(::utimensat(AT_FDCWD, path.c_str(), later, 0) == 0);
  CHECK(code([&] { file->check_unchanged(); }) == ErrorCode::file_changed);
  std::filesystem::resize_file(path, 500);
  CHECK(code([&] { file->read(0, buffer.data(), 1000); }) == ErrorCode::file_changed);
  CHECK(code([&] { file->read_rows(0, 60, 50, 1000, buffer.data()); }) == ErrorCode::file_changed);
}

TEST_CASE("safetensors: folders, single and sharded") {
  const Folder folder;
  std::string message;
  CHECK(open_code(folder.path) == ErrorCode::not_found);
  CHECK(open_code(folder.path / "absent") == ErrorCode::not_found);
  folder.write("model.safetensors", file_bytes(kGood, 16));
  CHECK(Checkpoint::open(folder.path.string()).tensors().size() == 2);
  CHECK(Checkpoint::open(folder.path.string()).total_bytes() == 16);

  const std::string only_a = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  const std::string only_b = R"({"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  folder.write("s1.safetensors", file_bytes(only_a, 8));
  folder.write("s2.safetensors", file_bytes(only_b, 8));
  const auto index = [&](const std::string& map) {
    folder.write(kIndexName, R"({"metadata":{"total_size":1},"weight_map":)" + map + "}");
  };
  index(R"({"a":"s1.safetensors","b":"s2.safetensors"})");
  const Checkpoint checkpoint = Checkpoint::open(folder.path.string());
  CHECK(checkpoint.tensors().size() == 2);
  CHECK(checkpoint.find("b")->file->path() == (folder.path / "s2.safetensors").string());
  CHECK(checkpoint.find("c") == nullptr);
  checkpoint.check_unchanged();

  index(R"({"a":"s2.safetensors","b":"s2.safetensors"})");
  CHECK(open_code(folder.path, &message) == ErrorCode::bad_checkpoint);
  CHECK(has(message, "'a' in s2.safetensors"));
  index(R"({"a":"s1.safetensors","b":"s3.safetensors"})");
  CHECK(open_code(folder.path) == ErrorCode::not_found);
  for (const char* outside : {"../s1.safetensors", "/etc/passwd", "a/b", "..", "", "a\\\\b"}) {
    index(R"({"a":")" + std::string(outside) + R"("})");
    CHECK(open_code(folder.path, &message) == ErrorCode::bad_checkpoint);
    CHECK(has(message, "plain file names"));
  }
  for (const char* bad : {"{}", "[]", "7", R"({"a":7})", R"({"a":{"b":"c"}})"}) {
    index(bad);
    CHECK(open_code(folder.path) == ErrorCode::bad_checkpoint);
  }
  folder.write("s2.safetensors", file_bytes(only_a, 8));
  index(R"({"a":"s1.safetensors","b":"s2.safetensors"})");
  CHECK(open_code(folder.path, &message) == ErrorCode::bad_checkpoint);
  CHECK(has(message, "also in"));

  std::filesystem::remove(folder.path / "s1.safetensors");
  REQUIRE(::mkfifo((folder.path / "s1.safetensors").c_str(), 0600) == 0);  // a pipe must not be waited for
  CHECK(open_code(folder.path) == ErrorCode::bad_checkpoint);
}
